"""What travels between a Flower app's server and its clients on our grids: records of any kind, client by client.

Our own clients answer with numbers and one stacked array (fedsim/wire.py). Of somebody else's app nothing is known
but that a node gets a message and gives a message, so both go as they are. A request carries one more record, the
envelope: what the messages that share it do not have in common, which a ClientApp may look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedsim.engine import flower
from fedsim.engine.states import State

ENVELOPE = "fedsim.envelope"
"""Key of the record that a request carries beside the app's own."""

SAID = "fedsim.said"
"""Key of the record that a reply carries beside the app's own when its client printed something."""

STATE = "state"
NOBODY = -1
"""Stands for no task in an envelope, whose lists hold numbers only."""


@dataclass(frozen=True, eq=False)
class Records:
    """What several clients of a Flower app answer.

    Attributes:
        clients: Their numbers, K of them.
        contents: The content of each one's reply; None where there is an error.
        errors: Row -> what went wrong there, a `flower.Fault`.
    """

    clients: tuple[int, ...]
    contents: tuple[RecordDict | None, ...]
    errors: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def merged(
        cls, parts: Sequence[tuple[Sequence[int], Records]], num_rows: int, updates: object = None
    ) -> Records:
        """Return the answers of several workers as one.

        Args:
            parts: The places of a worker's rows in the whole, and its answers.
            num_rows: Number of rows K of the whole; those of no part stay empty.
            updates: Not used: nothing is stacked.
        """
        del updates
        clients = [-1] * num_rows
        contents: list[RecordDict | None] = [None] * num_rows
        errors: dict[int, str] = {}
        for places, part in parts:
            for row, place in enumerate(places):
                clients[place], contents[place] = part.clients[row], part.contents[row]
                if row in part.errors:
                    errors[place] = part.errors[row]
        return cls(tuple(clients), tuple(contents), errors)

    def content(self, row: int) -> RecordDict:
        """Return what one client answers."""
        found = self.contents[row]
        assert found is not None, f"row {row} is an error or was not answered"
        return found


def own_copy(content: RecordDict) -> RecordDict:
    """Return records that can be changed without changing those given; the bytes of arrays are shared."""
    return RecordDict({name: _copied(record) for name, record in content.items()})


def sealed(content: RecordDict, messages: Sequence[Message]) -> RecordDict:
    """Return one request for several messages: their common content, and the envelope of each.

    Args:
        content: The content that all of them have.
        messages: One each for different nodes, from one server.
    """
    letters = [message.metadata for message in messages]
    first = letters[0]
    tasks = [NOBODY if letter.dst_task_id is None else letter.dst_task_id for letter in letters]
    envelope = ConfigRecord(
        {
            "run": first.run_id,
            "source": first.src_node_id,
            "source-task": NOBODY if first.src_task_id is None else first.src_task_id,
            "nodes": [letter.dst_node_id for letter in letters],
            "ids": [letter.message_id for letter in letters],
            "groups": [letter.group_id for letter in letters],
            "created": [letter.created_at for letter in letters],
            "ttls": [float(letter.ttl) for letter in letters],
            "tasks": tasks,
        }
    )
    whole = own_copy(content)
    whole[ENVELOPE] = envelope
    return whole


def opened(kind: str, request: RecordDict, nodes: Sequence[int]) -> list[Message]:
    """Return the messages that nodes receive, each with records of its own.

    Args:
        kind: Their type.
        request: What `sealed` made.
        nodes: Who receives them.
    """
    envelope = cast("dict[str, list[object]]", request[ENVELOPE])
    row_of = {node: row for row, node in enumerate(cast("list[int]", envelope["nodes"]))}
    content = {name: record for name, record in request.items() if name != ENVELOPE}
    found = []
    for node in nodes:
        row = row_of[node]
        metadata = Metadata(
            run_id=cast(int, envelope["run"]),
            message_id=cast(str, envelope["ids"][row]),
            src_node_id=cast(int, envelope["source"]),
            dst_node_id=node,
            reply_to_message_id="",
            group_id=cast(str, envelope["groups"][row]),
            created_at=cast(float, envelope["created"][row]),
            ttl=cast(float, envelope["ttls"][row]),
            message_type=kind,
            src_task_id=_task(envelope["source-task"]),
            dst_task_id=_task(envelope["tasks"][row]),
        )
        found.append(flower.delivered(metadata, own_copy(RecordDict(dict(content)))))
    return found


def with_said(content: RecordDict, text: str) -> RecordDict:
    """Return the content of a reply with what its client printed."""
    if not text:
        return content
    return RecordDict({**content, SAID: ConfigRecord({SAID: text})})


def heard(content: RecordDict) -> list[str]:
    """Take what a client printed out of the content of its reply, line by line."""
    if SAID not in content:
        return []
    text = str(content[SAID][SAID])
    del content[SAID]
    return text.splitlines()


def pack_state(records: RecordDict) -> State:
    """Return the state of a Flower context as an array: Flower's own serialisation, [number of bytes] uint8.

    Raises:
        ValueError: The state holds what Flower cannot send.
    """
    return {STATE: np.frombuffer(flower.to_bytes(records), np.uint8)} if len(records) else {}


def unpack_state(state: Mapping[str, NDArray[np.generic]]) -> RecordDict:
    """Return the state of a Flower context from `pack_state`."""
    return flower.from_bytes(state[STATE].tobytes()) if STATE in state else RecordDict()


def _copied(record: ArrayRecord | MetricRecord | ConfigRecord) -> ArrayRecord | MetricRecord | ConfigRecord:
    if isinstance(record, ArrayRecord):
        return ArrayRecord(
            {
                name: Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(array.data))
                for name, array in record.items()
            }
        )
    values = {name: list(value) if isinstance(value, list) else value for name, value in record.items()}
    return type(record)(values)  # type: ignore[arg-type]


def _task(number: object) -> int | None:
    return None if number == NOBODY else cast(int, number)
