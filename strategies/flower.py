"""RuleStrategy: the one Flower Strategy that wraps every rule.

It samples clients from a seed, checks every reply, calls the rule, and takes the server's step. What each client
sent and got is kept for whoever writes it down.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from fedsim import seeds
from fedsim.errors import ClientError, RoundError
from fedsim.parameters import Layout, tensor_of
from fedsim.wire import (
    EXAMPLES,
    Answer,
    pack_arrays,
    pack_request,
    read,
    read_update,
    stack_updates,
    unpack_arrays,
)
from strategies.rules import AnyRule, Cohort, Direction, MemoryRule, NonFiniteUpdateError, Rule

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
    """

    info: Mapping[str, float | str] = field(default_factory=dict)
    weights: Mapping[int, float] = field(default_factory=dict)
    failures: tuple[Answer, ...] = ()


class RuleStrategy(Strategy):
    """Runs any rule over any Grid.

    Args:
        rule: The aggregation rule.
        server_lr: Learning rate eta in theta <- theta - eta d; None takes the rule's default.
        server_lr_decay: Factor on server_lr after each round.
        clients_per_round: Clients drawn without replacement; None takes `fraction_train` of those connected.
        fraction_train: Share of the connected clients that train, when clients_per_round is None.
        min_available_nodes: Nodes to wait for before a round starts.
        seed: Seed of the sampling; the draw of a round depends on the seed, the round and the node ids alone.
        max_failures: Clients that may fail in one round; one more stops the run.
        loss_key: Name of the metric that holds the loss at the received weights.
    """

    def __init__(
        self,
        rule: AnyRule,
        *,
        server_lr: float | None = None,
        server_lr_decay: float = 1.0,
        clients_per_round: int | None = None,
        fraction_train: float = 1.0,
        min_available_nodes: int = 1,
        seed: int = 0,
        max_failures: int = 0,
        loss_key: str = "loss",
    ) -> None:
        self.rule = rule
        self.server_lr = rule.default_server_lr if server_lr is None else server_lr
        self.server_lr_decay = server_lr_decay
        self.clients_per_round = clients_per_round
        self.fraction_train = fraction_train
        self.min_available_nodes = max(min_available_nodes, clients_per_round or 1)
        self.seed = seed
        self.max_failures = max_failures
        self.loss_key = loss_key
        self.memory: dict[str, Any] = rule.initial_memory() if isinstance(rule, MemoryRule) else {}
        self.last = Aggregation()
        self._sent: tuple[Layout, NDArray[np.float32]] | None = None

    def summary(self) -> None:
        """Log what this strategy is."""
        log.info("strategy %s(%s), server_lr %g", type(self.rule).__name__, self.rule, self.server_lr)

    def lr(self, server_round: int) -> float:
        """Return the server learning rate of a round, counted from 1."""
        return self.server_lr * self.server_lr_decay ** (server_round - 1)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw this round's clients and ask them for their updates."""
        nodes = self._nodes(grid)
        count = self.clients_per_round or max(1, round(self.fraction_train * len(nodes)))
        draw = torch.randperm(len(nodes), generator=seeds.generator(self.seed, "sample", server_round))
        chosen = sorted(nodes[place] for place in draw[:count].tolist())
        named = unpack_arrays(arrays)
        layout = Layout.of(named)
        self._sent = (layout, layout.join(named))
        content = pack_request(arrays, config, server_round, wants_update=True)
        return _messages(content, chosen, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, apply the rule, take the step.

        Raises:
            ClientError: More clients failed than max_failures allows; names the first and its cause.
            RoundError: Every client failed, the rule refuses what they sent, or the step leaves the finite numbers.
        """
        assert self._sent is not None, "aggregate_train before configure_train"
        layout, theta = self._sent
        good, answers, failures = self._sort(list(replies), theta, layout)
        self._tolerate(server_round, failures, len(good))
        while True:
            try:
                cohort = self._cohort(server_round, good, answers, theta, layout)
                direction, memory = self._direction(cohort)
                break
            except NonFiniteUpdateError as error:
                failures += [replace(answers[row], error="its update is not finite") for row in error.rows]
                good = [reply for row, reply in enumerate(good) if row not in error.rows]
                answers = [answer for row, answer in enumerate(answers) if row not in error.rows]
                self._tolerate(server_round, failures, len(good))
            except ValueError as error:
                raise RoundError(f"round {server_round}: {type(self.rule).__name__}: {error}") from error
        stepped = torch.from_numpy(theta) - self.lr(server_round) * direction.vector
        if not bool(torch.isfinite(stepped).all()):
            raise RoundError(
                f"round {server_round}: the server's step leaves the finite numbers with server.lr "
                f"{self.server_lr:g}; lower it"
            )
        self.memory = memory
        self.last = _aggregation(cohort, direction, failures)
        numbers = {name: value for name, value in self.last.info.items() if isinstance(value, float)}
        return pack_arrays(layout.split(stepped.numpy())), MetricRecord(dict(numbers))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every client, sampled or not: fairness over the sampled ones only is not fairness."""
        content = pack_request(arrays, config, server_round, wants_update=False)
        return _messages(content, self._nodes(grid), MessageType.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the means over clients, weighted by examples.

        Raises:
            ClientError: More clients failed than max_failures allows.
        """
        answers = [read(reply) for reply in replies]
        failures = [answer for answer in answers if answer.error is not None]
        good = [answer.numbers for answer in answers if answer.error is None]
        self._tolerate(server_round, failures, len(good))
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

    def _sort(
        self, replies: Sequence[Message], theta: NDArray[np.float32], layout: Layout
    ) -> tuple[list[Message], list[Answer], list[Answer]]:
        """Separate replies that can be averaged from those that cannot, with the cause."""
        good: list[Message] = []
        answers: list[Answer] = []
        failures: list[Answer] = []
        # By client, so that a sum has one order whatever order a grid answers in.
        pairs = [(read(reply), reply) for reply in replies]
        pairs.sort(key=lambda pair: (pair[0].client, pair[0].node or 0))
        for answer, reply in pairs:
            problem = answer.error or self._problem(answer, reply, theta, layout)
            if problem is None:
                good.append(reply)
                answers.append(answer)
            else:
                failures.append(replace(answer, error=problem))
        return good, answers, failures

    def _problem(self, answer: Answer, reply: Message, theta: NDArray[np.float32], layout: Layout) -> str | None:
        for need in (EXAMPLES, *self.rule.needs):
            key = self.loss_key if need == "loss" else need
            if key not in answer.numbers:
                sent = ", ".join(answer.numbers) or "no metrics"
                return f'it sent no "{key}", which {type(self.rule).__name__} needs; it sent {sent}'
        for key in (EXAMPLES, self.loss_key, *self.rule.needs, *self.rule.wants):
            value = answer.numbers.get(key, 0.0)
            if not (np.isfinite(value) and value >= 0):
                return f"its {key} must be finite and not negative, got {value}"
        try:
            read_update(reply, theta, layout)
        except ValueError as error:
            return str(error)
        return None

    def _tolerate(self, server_round: int, failures: Sequence[Answer], num_good: int) -> None:
        for failure in failures:
            log.warning("%s failed in round %d: %s", failure.label, server_round, failure.error)
        if failures and (num_good == 0 or len(failures) > self.max_failures):
            first = failures[0]
            more = f" ({len(failures) - 1} more clients failed)" if len(failures) > 1 else ""
            if num_good == 0 and len(failures) > 1:
                more = (
                    f"; every client failed: have the weights diverged, is client.lr or server.lr too large?{more}"
                )
            raise ClientError(first.client, server_round, f"{first.error}{more}", node=first.node)
        if num_good == 0:
            raise RoundError(f"round {server_round}: no client answered")

    def _cohort(
        self,
        server_round: int,
        replies: Sequence[Message],
        answers: Sequence[Answer],
        theta: NDArray[np.float32],
        layout: Layout,
    ) -> Cohort:
        updates = stack_updates(replies, theta, layout)
        sizes = _column(answers, EXAMPLES)
        total = sizes.sum()
        if not float(total) > 0:
            raise RoundError(f"round {server_round}: the clients have no examples")
        return Cohort(
            updates=tensor_of(updates),
            losses=_column(answers, self.loss_key),
            weights=sizes / total,
            clients=tuple(answer.client for answer in answers),
            reports={name: _column(answers, name) for name in self._reports(answers)},
            server_lr=self.lr(server_round),
        )

    def _reports(self, answers: Sequence[Answer]) -> list[str]:
        wanted = [name for name in self.rule.wants if all(name in answer.numbers for answer in answers)]
        return [*(name for name in self.rule.needs if name != "loss"), *wanted]

    def _direction(self, cohort: Cohort) -> tuple[Direction, dict[str, Any]]:
        if isinstance(self.rule, MemoryRule):
            return self.rule.direction(cohort, self.memory)
        return cast(Rule, self.rule).direction(cohort), self.memory


def _messages(content: RecordDict, nodes: Sequence[int], kind: str) -> list[Message]:
    return [Message(content, dst_node_id=node, message_type=kind) for node in nodes]


def _column(answers: Sequence[Answer], name: str) -> Tensor:
    return torch.tensor([answer.numbers.get(name, 0.0) for answer in answers], dtype=torch.float64)


def _aggregation(cohort: Cohort, direction: Direction, failures: Sequence[Answer]) -> Aggregation:
    factors = [] if direction.weights is None else direction.weights.tolist()
    weights = dict(zip(cohort.clients, factors, strict=False))
    return Aggregation(dict(direction.info), weights, tuple(failures))
