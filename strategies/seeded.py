"""What every strategy of the platform does around its aggregation: sampling, checks, failures, evaluation.

Clients are drawn from a seed, so that methods compared under one seed see the same clients in every round; a reply
is checked before anything is computed from it; every client is evaluated, sampled or not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fedsim import seeds
from fedsim.engine.flower import to_nodes
from fedsim.errors import ClientError, RoundError
from fedsim.parameters import Layout
from fedsim.system.model import System
from fedsim.system.plan import Plan
from fedsim.wire import (
    EXAMPLES,
    MOST_CLIENTS,
    Answer,
    pack_arrays,
    pack_request,
    read,
    read_update,
    sound_rows,
    unpack_arrays,
    with_shares,
)

WAIT_S = 60.0
"""Seconds to wait for enough nodes to connect; simulated ones are there at once."""

log = getLogger("fedsim")


@dataclass(frozen=True)
class Aggregation:
    """What one round's aggregation did, for the run record.

    Attributes:
        info: The rule's certificate and other numbers and words about the round.
        weights: Client -> factor of its update in the direction.
        failures: The clients left out, with the cause.
        system: What became of the round on the virtual clock, where there is one.
    """

    info: Mapping[str, float | str] = field(default_factory=dict)
    weights: Mapping[int, float] = field(default_factory=dict)
    failures: tuple[Answer, ...] = ()
    system: Plan | None = None


class SeededStrategy(Strategy):
    """Base of the platform's strategies.

    Args:
        title: What messages call the method.
        needs: Metrics every client must send beside its number of examples.
        wants: Metrics that are checked where they are sent.
        clients_per_round: Clients drawn without replacement; None takes `fraction_train` of those connected.
        fraction_train: Share of the connected clients that train, when clients_per_round is None.
        min_available_nodes: Nodes to wait for before a round starts.
        seed: Seed of the sampling; the draw of a round depends on the seed, the round and the node ids alone.
        max_failures: Clients that may fail in one round; one more stops the run.

    Attributes:
        begins_ahead: A round's clients may be asked before the one before is evaluated: they do not depend on it.
        system: What the clients' devices do to a round; None leaves every client there and in no time.
    """

    begins_ahead: ClassVar[bool] = True

    def __init__(
        self,
        title: str,
        needs: Sequence[str],
        wants: Sequence[str] = (),
        *,
        clients_per_round: int | None = None,
        fraction_train: float = 1.0,
        min_available_nodes: int = 1,
        seed: int = 0,
        max_failures: int = 0,
        system: System | None = None,
    ) -> None:
        self.title = title
        self.clients_per_round = clients_per_round
        self.fraction_train = fraction_train
        self.min_available_nodes = max(min_available_nodes, clients_per_round or 1)
        self.seed = seed
        self.max_failures = max_failures
        self.system = system
        self.last = Aggregation()
        self._needs, self._wants = tuple(needs), tuple(wants)
        self._sent: tuple[Layout, NDArray[np.float32]] | None = None
        self._last_packed: dict[tuple[object, ...], tuple[Layout, NDArray[np.float32]]] = {}
        self._num_nodes = 0
        self._client_of: dict[int, int] = {}

    def draw(self, server_round: int, grid: Grid, extra: int = 0) -> list[int]:
        """Return the nodes that train in a round, ascending; with a system, those whose answers will count.

        Args:
            server_round: Round, from 1.
            grid: Where the clients are.
            extra: Numbers that go to each client beside the weights that `remember` was told of.
        """
        nodes = self._nodes(grid)
        self._num_nodes = len(nodes)
        count = self.clients_per_round or max(1, round(self.fraction_train * len(nodes)))
        order = torch.randperm(len(nodes), generator=seeds.generator(self.seed, "sample", server_round)).tolist()
        if self.system is None:
            return sorted(nodes[place] for place in order[:count])
        self._identify(nodes, grid)
        node_of = {self._client_of[node]: node for node in nodes}
        clients, size = sorted(node_of), len(self.sent()[1])
        plan = self.system.begin(server_round, [clients[place] for place in order], count, size + extra, size)
        return sorted(node_of[client] for client in plan.counted)

    def clients(self, nodes: Sequence[int]) -> list[int]:
        """Return which clients nodes stand for that `draw` has seen, where there is a system."""
        return [self._client_of[node] for node in nodes]

    def request(self, config: ConfigRecord) -> ConfigRecord:
        """Return the config of this round's requests: who takes only a share of its local steps."""
        return config if self.system is None else with_shares(config, self.system.plan.shares)

    def outcome(self) -> Plan | None:
        """Put the virtual clock to the end of the round and return what became of it."""
        return None if self.system is None else self.system.end()

    def unchanged(self) -> tuple[ArrayRecord, MetricRecord | None] | None:
        """Return the weights the round started from where nobody was asked to train, else None."""
        if self.system is None or self.system.plan.counted:
            return None
        layout, theta = self.sent()
        self.last = Aggregation(system=self.outcome())
        return self.packed(layout, theta), None

    def remember(self, arrays: ArrayRecord) -> tuple[Layout, NDArray[np.float32]]:
        """Keep the weights a round starts from, against which its replies are read."""
        self._sent = self._last_packed.pop(_bits(arrays), None) or _flat(arrays)
        self._last_packed.clear()
        return self._sent

    def packed(self, layout: Layout, theta: NDArray[np.float32]) -> ArrayRecord:
        """Return weights as a record; the next round, which mostly starts from it, need not read it again."""
        arrays = pack_arrays(layout.split(theta))
        self._last_packed = {_bits(arrays): (layout, theta)}
        return arrays

    def sent(self) -> tuple[Layout, NDArray[np.float32]]:
        """Return what the round started from."""
        assert self._sent is not None, "aggregate_train before configure_train"
        return self._sent

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client, sampled or not: fairness over the sampled ones only is not fairness."""
        content = pack_request(arrays, config, server_round, wants_update=False)
        return messages(content, self._nodes(grid), MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over clients, weighted by examples.

        Raises:
            ClientError: More clients failed than max_failures allows.
        """
        answers = [read(reply) for reply in replies]
        failures = [answer for answer in answers if answer.error is not None]
        good = [answer.numbers for answer in answers if answer.error is None]
        self.tolerate(server_round, failures, len(good))
        sizes = np.array([numbers.get(EXAMPLES, 0.0) for numbers in good])
        if not sizes.sum() > 0:
            return None
        names = [name for name in good[0] if name.startswith("test_")]
        means = {
            name: float(np.average([numbers[name] for numbers in good], weights=sizes))
            for name in names
            if all(name in numbers for numbers in good)
        }
        return MetricRecord(dict(means))

    def sort(self, replies: Iterable[Message]) -> tuple[list[Message], list[Answer], list[Answer]]:
        """Separate replies that can be averaged, with what they say, from those that cannot, with the cause.

        Both come by client, so that a sum has one order whatever order a grid answers in.
        """
        layout, theta = self.sent()
        good: list[Message] = []
        answers: list[Answer] = []
        failures: list[Answer] = []
        pairs = [(read(reply), reply) for reply in replies]
        pairs.sort(key=lambda pair: (pair[0].client, pair[0].node or 0))
        sound = sound_rows([reply for _, reply in pairs], (EXAMPLES, *self._needs), self._wants, len(theta))
        for (answer, reply), is_sound in zip(pairs, sound, strict=True):
            problem = None if is_sound else answer.error or self._problem(answer, reply, theta, layout)
            if problem is None:
                good.append(reply)
                answers.append(answer)
            else:
                failures.append(replace(answer, error=problem))
        return good, answers, failures

    def tolerate(self, server_round: int, failures: Sequence[Answer], num_good: int) -> None:
        """Log failed clients; stop when there are too many.

        Raises:
            ClientError: More clients failed than max_failures allows; names the first and its cause.
            RoundError: Nobody answered.
        """
        for failure in failures:
            log.warning("%s failed in round %d: %s", failure.label, server_round, failure.error)
        if failures and (num_good == 0 or len(failures) > self.max_failures):
            first = failures[0]
            more = f" ({len(failures) - 1} more clients failed)" if len(failures) > 1 else ""
            if num_good == 0 and len(failures) > 1:
                guess = ": have the weights diverged, is client.lr or server.lr too large?"
                more = f"; every client failed{guess if 'finite' in str(first.error) else ''}{more}"
            raise ClientError(first.client, server_round, f"{first.error}{more}", node=first.node)
        if num_good == 0:
            raise RoundError(f"round {server_round}: no client answered")

    def _nodes(self, grid: Grid) -> list[int]:
        """Return the connected nodes, ascending, as soon as there are enough."""
        deadline, waiting_for = time.monotonic() + WAIT_S, -1
        while True:
            nodes = sorted(grid.get_node_ids())
            if len(nodes) >= self.min_available_nodes:
                return nodes
            if time.monotonic() > deadline:
                raise RoundError(
                    f"{len(nodes)} of {self.min_available_nodes} nodes connected within {WAIT_S:g} s; under "
                    "`flwr run` set their number with `flwr federation simulation-config @none/default local "
                    f"--num-supernodes {self.min_available_nodes}`"
                )
            if len(nodes) != waiting_for:
                waiting_for = len(nodes)
                print(f"waiting for nodes: {waiting_for} of {self.min_available_nodes} are connected", flush=True)
            time.sleep(0.5)

    def _identify(self, nodes: Sequence[int], grid: Grid) -> None:
        """Learn which client each node is: a system knows clients by their numbers, as the data do.

        Node i + 1 of our own grids is client i. Others draw node ids at random, and are asked.

        Raises:
            RoundError: A node does not say which client it is.
        """
        self._client_of.update({node: node - 1 for node in nodes if 0 < node <= MOST_CLIENTS})
        unknown = [node for node in nodes if node not in self._client_of]
        if not unknown:
            return
        layout, theta = self.sent()
        content = pack_request(pack_arrays(layout.split(theta)), ConfigRecord(), 0, wants_update=False)
        for answer in map(read, grid.send_and_receive(messages(content, unknown, MessageType.EVALUATE))):
            if answer.node is not None and answer.client >= 0:
                self._client_of[answer.node] = answer.client
        silent = [node for node in unknown if node not in self._client_of]
        if silent:
            raise RoundError(
                f"node {silent[0]} does not say which client it is, and [system] knows devices by client; its app "
                f'must send the metric "client"'
            )

    def _problem(self, answer: Answer, reply: Message, theta: NDArray[np.float32], layout: Layout) -> str | None:
        missing = [f'"{need}"' for need in (EXAMPLES, *self._needs) if need not in answer.numbers]
        if missing:
            sent = ", ".join(answer.numbers) or "no metrics"
            return (
                f"it sent no {' and no '.join(missing)}, which {self.title} needs; it sent {sent}; docs/rules.md "
                "says what a rule's clients do"
            )
        for key in (EXAMPLES, *self._needs, *self._wants):
            value = answer.numbers.get(key, 0.0)
            if not (np.isfinite(value) and value >= 0):
                return f"its {key} must be finite and not negative, got {value}"
        try:
            read_update(reply, theta, layout)
        except ValueError as error:
            return str(error)
        return None


def messages(content: RecordDict, nodes: Sequence[int], kind: str) -> list[Message]:
    """Return one message to each node; they share their content, so that it travels once."""
    return to_nodes(content, nodes, kind)


def _flat(arrays: ArrayRecord) -> tuple[Layout, NDArray[np.float32]]:
    named = unpack_arrays(arrays)
    layout = Layout.of(named)
    return layout, layout.join(named)


def _bits(arrays: ArrayRecord) -> tuple[object, ...]:
    """Return what a record holds, to see whether it still does: names, and the very bytes, which never change."""
    return tuple((name, array.dtype, tuple(array.shape), Bytes(array.data)) for name, array in arrays.items())


class Bytes:
    """Bytes that equal themselves alone, so that comparing costs nothing; they stay alive with this."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bytes) and other._data is self._data

    def __hash__(self) -> int:
        return id(self._data)
