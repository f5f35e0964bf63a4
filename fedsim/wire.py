"""What travels: the only file that knows record keys. Requests and replies are ordinary Flower records.

request   arrays (ArrayRecord, the weights)   config (ConfigRecord: server-round, reply; partial-clients and
          partial-shares, who takes which share of its local steps, where not everybody takes all)
          extra (ArrayRecord, what a rule sends along with the weights), where there is any
train     arrays (the local weights), or update (one flat array) when the request's reply is "update";
          metrics (MetricRecord: client, num-examples, loss, loss-after, steps, ...)
evaluate  metrics (client, num-examples, test_loss, test_accuracy, ...; lists for what is one number per class or
          group, and sums.<metric>, the additive sums of a metric whose value on all clients' examples is wanted)
query.losses  metrics (client, num-examples, loss: the mean training loss at the weights sent)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.engine.flower import LazyReply
from fedsim.parameters import Layout

ARRAYS, CONFIG, METRICS, UPDATE, STATE, EXTRA = "arrays", "config", "metrics", "update", "state", "extra"
ROUND, REPLY, CLIENT, EXAMPLES = "server-round", "reply", "client", "num-examples"
PARTIAL, SHARES = "partial-clients", "partial-shares"

LOSSES = "query.losses"
"""Message type that asks for the training loss at given weights."""

MOST_CLIENTS = 2**32
"""Node ids up to this are those of our own grids."""

Floats = NDArray[np.float32]

_NO_VECTORS: Mapping[str, NDArray[np.float64]] = MappingProxyType({})


@dataclass(frozen=True)
class Request:
    """What a client reads from a message.

    Attributes:
        server_round: Round, from 1 (0: evaluation of the initial model).
        theta: Weights, [D].
        layout: Their names and shapes.
        wants_update: Whether the reply is the update rather than the local weights.
        extra: What the server's rule sent along, by name, each [D].
        shares: Client -> share of its local steps, of those that do not take all.
    """

    server_round: int
    theta: Floats
    layout: Layout
    wants_update: bool
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Block:
    """What several clients answer, stacked.

    Attributes:
        clients: Their numbers, K of them.
        numbers: Metric name -> [K], or [K, S] where a client sends a list.
        updates: [K, D], or None for an evaluation.
        errors: Row -> what went wrong there; that row of the arrays means nothing.
        theta: The weights received, [D], when local weights rather than updates were asked for.
        layout: Names and shapes that go with `theta`.
        posted: The updates lie on the engine's board rather than here.
    """

    clients: tuple[int, ...]
    numbers: Mapping[str, NDArray[np.float64]]
    updates: Floats | None = None
    errors: Mapping[int, str] = field(default_factory=dict)
    theta: Floats | None = None
    layout: Layout | None = None
    posted: bool = False

    @staticmethod
    def merged(parts: Sequence[tuple[Sequence[int], Block]], num_rows: int, updates: Floats | None) -> Block:
        """Return one block for what several workers answer.

        Args:
            parts: The places of a worker's rows in the whole, and its block.
            num_rows: Number of rows K of the whole.
            updates: [K, D] where rows that were posted lie already, or None to make it where it is needed.
        """
        clients = [-1] * num_rows
        numbers: dict[str, NDArray[np.float64]] = {}
        errors: dict[int, str] = {}
        theta, layout = None, None
        for places, part in sorted(parts, key=lambda pair: min(pair[0], default=0)):  # whoever came first
            rows = list(places)
            for place, client in zip(rows, part.clients, strict=True):
                clients[place] = client
            for name, column in part.numbers.items():
                blank = np.full((num_rows, *column.shape[1:]), np.nan)
                numbers.setdefault(name, blank)[rows] = column
            errors |= {rows[row]: reason for row, reason in part.errors.items()}
            if part.updates is not None:
                width = part.updates.shape[1]
                if updates is None or updates.shape[1] == 0:
                    updates = np.zeros((num_rows, width), np.float32)
                if updates.shape[1] == width:
                    updates[rows] = part.updates
                else:
                    reason = f"an update must have shape {[updates.shape[1]]}, got {[width]}"
                    errors |= {row: reason for row in rows if row not in errors}
            if part.theta is not None:
                theta, layout = part.theta, part.layout
        sent = any(part.posted or part.updates is not None for _, part in parts)
        return Block(tuple(clients), numbers, updates if sent else None, errors, theta, layout)

    def content(self, row: int) -> RecordDict:
        """Return one client's answer as Flower records."""
        scalars, vectors = self.row(row)
        numbers: dict[str, int | float | list[int] | list[float]] = {
            **{name: int(value) if name in (CLIENT, EXAMPLES) else value for name, value in scalars.items()},
            **{name: vector.tolist() for name, vector in vectors.items()},
        }
        content = RecordDict({METRICS: MetricRecord(numbers)})
        if self.updates is not None and self.theta is not None and self.layout is not None:
            content[ARRAYS] = pack_arrays(self.layout.split(self.theta - self.updates[row]))
        elif self.updates is not None:
            content[UPDATE] = pack_arrays({UPDATE: self.updates[row]})
        return content

    @cached_property
    def answers(self) -> list[Answer]:
        """What every client said, in the order of the rows; the numbers of failed ones mean nothing."""
        scalars = {name: column.tolist() for name, column in self.numbers.items() if column.ndim == 1}
        vectors = {name: column for name, column in self.numbers.items() if column.ndim > 1}
        lists = list(scalars.values())
        return [
            Answer(
                client,
                dict(zip(scalars, (values[row] for values in lists), strict=True)),
                node=client + 1,
                vectors={name: column[row] for name, column in vectors.items()} if vectors else _NO_VECTORS,
            )
            for row, client in enumerate(self.clients)
        ]

    def sound(self, needs: Sequence[str], wants: Sequence[str], width: int) -> list[bool]:
        """Return for each row what `sound_rows` says."""
        keys = [*needs, *(want for want in wants if want in self.numbers)]
        if self.updates is None or self.updates.shape[1] != width or any(key not in self.numbers for key in keys):
            return [False] * len(self.clients)
        columns = [self.numbers[key] for key in keys if self.numbers[key].ndim == 1]
        whole = np.logical_and.reduce([np.isfinite(column) & (column >= 0) for column in columns])
        whole[list(self.errors)] = False
        rows: list[bool] = whole.tolist()
        return rows

    def row(self, row: int) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Return one client's numbers and lists."""
        scalars = {name: float(column[row]) for name, column in self.numbers.items() if column.ndim == 1}
        return scalars, {name: column[row] for name, column in self.numbers.items() if column.ndim > 1}


@dataclass(frozen=True)
class Answer:
    """One client's reply as the server reads it.

    Attributes:
        client: Client number; -1 for a failed node that never said which client it is.
        numbers: Its metrics, empty when it failed.
        error: What went wrong, or None.
        node: Flower's node id.
        vectors: Its metrics that are lists, each [S].
    """

    client: int
    numbers: Mapping[str, float]
    error: str | None = None
    node: int | None = None
    vectors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def key(self) -> int:
        """What memories keep a client under: its number, or its node's where it sent none."""
        return self.client if self.client >= 0 or self.node is None else self.node

    @property
    def label(self) -> str:
        """The client, or the node where the client is not known."""
        return f"client {self.client}" if self.client >= 0 else f"node {self.node}"


def pack_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return named arrays as a record."""
    return ArrayRecord({name: Array(np.asarray(array, order="C")) for name, array in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a record by name."""
    return {name: array.numpy() for name, array in record.items()}


def pack_request(
    arrays: ArrayRecord,
    config: ConfigRecord,
    server_round: int,
    *,
    wants_update: bool,
    extra: Mapping[str, NDArray[np.generic]] | None = None,
) -> RecordDict:
    """Return the content of a message to clients; the caller's config is left alone."""
    settings = ConfigRecord(dict(config.items()))
    settings[ROUND] = server_round
    if wants_update:
        settings[REPLY] = UPDATE
    content = RecordDict({ARRAYS: arrays, CONFIG: settings})
    if extra:
        content[EXTRA] = pack_arrays(extra)
    return content


def with_shares(config: ConfigRecord, shares: Mapping[int, float]) -> ConfigRecord:
    """Return a config that also says which clients take only a share of their local steps."""
    settings = ConfigRecord(dict(config.items()))
    if shares:
        settings[PARTIAL], settings[SHARES] = list(shares), list(shares.values())
    return settings


def num_weights(content: RecordDict) -> int:
    """Return how many weights a request holds, D: as many numbers as a client sends in answer to training."""
    records = (record for name, record in content.array_records.items() if name != EXTRA)
    return sum(math.prod(array.shape) for record in records for array in record.values())


def unpack_request(content: RecordDict) -> Request:
    """Read a message to a client, whichever strategy sent it.

    Raises:
        ValueError: It does not hold exactly one array record beside the extra one.
    """
    records = dict(content.array_records.items())
    extra = records.pop(EXTRA, None)
    if len(records) != 1:
        raise ValueError(f"a request holds one array record, got {len(records)}")
    arrays = unpack_arrays(next(iter(records.values())))
    layout = Layout.of(arrays)
    config = next(iter(content.config_records.values()), ConfigRecord())
    wants_update = config.get(REPLY) == UPDATE
    received = {} if extra is None else unpack_arrays(extra)
    partial, shares = cast(list[int], config.get(PARTIAL, [])), cast(list[float], config.get(SHARES, []))
    return Request(
        int(cast(int, config.get(ROUND, 0))),
        layout.join(arrays),
        layout,
        wants_update,
        received,
        dict(zip(partial, shares, strict=True)),
    )


def read(reply: Message) -> Answer:
    """Read one reply without making records that are not there yet."""
    stacked = _stacked(reply)
    if stacked is not None:
        answer = stacked[0].answers[stacked[1]]
        node = cast(LazyReply, reply).node
        return answer if answer.node == node else replace(answer, node=node)
    node = reply.metadata.src_node_id
    # Our grids number nodes from 1; Flower draws 64-bit ids that say nothing about the client.
    by_node = node - 1 if 0 < node <= MOST_CLIENTS else -1
    if reply.has_error():
        return Answer(by_node, {}, reply.error.reason or f"error code {reply.error.code}", node)
    numbers: dict[str, float] = {}
    vectors: dict[str, NDArray[np.float64]] = {}
    for record in reply.content.metric_records.values():
        numbers |= {name: float(value) for name, value in record.items() if isinstance(value, int | float)}
        vectors |= {name: np.array(value, np.float64) for name, value in record.items() if isinstance(value, list)}
    client = numbers.get(CLIENT, math.nan)
    return Answer(int(client) if math.isfinite(client) else by_node, numbers, node=node, vectors=vectors)


def read_update(reply: Message, theta: Floats, layout: Layout) -> Floats:
    """Return one client's update theta_received - theta_local, [D].

    Raises:
        ValueError: Not one array record, or of another shape; says what came.
    """
    stacked = _stacked(reply)
    if stacked is not None:
        block, place = stacked
        if block.updates is None:
            raise ValueError("the reply holds no update")
        row: Floats = block.updates[place]
    else:
        records = reply.content.array_records
        if len(records) != 1:
            raise ValueError(f"a reply to training holds one array record, got {len(records)}")
        name, record = next(iter(records.items()))
        arrays = unpack_arrays(record)
        if name != UPDATE:
            return theta - layout.join(arrays)
        row = Layout.of(arrays).join(arrays)
    if row.shape != theta.shape:
        raise ValueError(f"an update must have shape {list(theta.shape)}, got {list(row.shape)}")
    return row


def sound_rows(replies: Sequence[Message], needs: Sequence[str], wants: Sequence[str], width: int) -> list[bool]:
    """Say which replies are rows of a block with all that is needed: nothing else has to be looked at there.

    Args:
        replies: Replies to training.
        needs: Numbers that must be there, finite and not negative.
        wants: Numbers that must be so where they are there.
        width: Numbers of an update, D.
    """
    sound: dict[int, list[bool]] = {}
    found = []
    for reply in replies:
        stacked = _stacked(reply)
        if stacked is None:
            found.append(False)
            continue
        block, row = stacked
        if id(block) not in sound:
            sound[id(block)] = block.sound(needs, wants, width)
        found.append(sound[id(block)][row])
    return found


def stack_updates(replies: Sequence[Message], theta: Floats, layout: Layout) -> Floats:
    """Return the updates of the replies as one array, [K, D], copied at most once."""
    whole = _whole_block(replies)
    if whole is not None:
        return whole
    stacked = np.empty((len(replies), len(theta)), np.float32)
    for row, reply in enumerate(replies):
        stacked[row] = read_update(reply, theta, layout)
    return stacked


def pack_state(state: Mapping[str, NDArray[np.generic]]) -> RecordDict:
    """Return what a client keeps between rounds as the records of its Flower context."""
    return RecordDict({STATE: pack_arrays(state)} if state else {})


def unpack_state(content: RecordDict) -> dict[str, NDArray[np.generic]]:
    """Read what a client kept."""
    record = content.array_records.get(STATE)
    return {} if record is None else unpack_arrays(record)


def _stacked(reply: Message) -> tuple[Block, int] | None:
    """Return the block a reply is a row of, unless somebody has looked at its records and may have changed them."""
    if not (isinstance(reply, LazyReply) and reply.untouched):
        return None
    block: Any = reply.block
    return block, reply.row


def _whole_block(replies: Iterable[Message]) -> Floats | None:
    """Return a block's own array when the replies are exactly its rows, in order."""
    rows = [_stacked(reply) for reply in replies]
    first = rows[0]
    if first is None:
        return None
    block = first[0]
    if block.updates is None or rows != [(block, row) for row in range(len(block.updates))]:
        return None
    return block.updates
