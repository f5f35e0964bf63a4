"""RuleStrategy: the one Flower Strategy that wraps every rule.

It calls the rule on what the clients of a round sent and takes the server's step. What each client sent and got is
kept for whoever writes it down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import RoundError
from fedsim.parameters import Layout, tensor_of
from fedsim.wire import EXAMPLES, LOSSES, Answer, pack_arrays, pack_request, read, stack_updates
from strategies.kernel import quiet
from strategies.rules import AnyRule, Cohort, Direction, MemoryRule, NonFiniteUpdateError, Rule
from strategies.seeded import Aggregation, SeededStrategy, log, messages


class RuleStrategy(SeededStrategy):
    """Runs any rule over any Grid.

    Args:
        rule: The aggregation rule.
        server_lr: Learning rate eta in theta <- theta - eta d; None takes the rule's default.
        server_lr_decay: Factor on server_lr after each round.
        loss_key: Name of the metric that holds the loss at the received weights.
        timeout: Seconds to wait for the losses of a line search's trial; None waits without end.
        options: Those of `SeededStrategy`: clients_per_round, fraction_train, min_available_nodes, seed,
            max_failures.
    """

    def __init__(
        self,
        rule: AnyRule,
        *,
        server_lr: float | None = None,
        server_lr_decay: float = 1.0,
        loss_key: str = "loss",
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        needs = [loss_key if need == "loss" else need for need in rule.needs]
        super().__init__(type(rule).__name__, needs, (loss_key, *rule.wants), **options)
        self.rule = rule
        self.server_lr = rule.default_server_lr if server_lr is None else server_lr
        self.server_lr_decay = server_lr_decay
        self.loss_key = loss_key
        self.timeout = timeout
        self.memory: dict[str, Any] = rule.initial_memory() if isinstance(rule, MemoryRule) else {}
        self._grid: Grid | None = None

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
        self._grid = grid  # a line search asks the same clients again
        self.remember(arrays)
        extra = self.rule.broadcast(self.memory) if isinstance(self.rule, MemoryRule) else {}
        nodes = self.draw(server_round, grid, extra=sum(tensor.numel() for tensor in extra.values()))
        content = pack_request(arrays, self.request(config), server_round, wants_update=True, extra=_plain(extra))
        return messages(content, nodes, MessageType.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, apply the rule, take the step.

        Raises:
            ClientError: More clients failed than max_failures allows; names the first and its cause.
            RoundError: Every client failed, the rule refuses what they sent, or the step leaves the finite numbers.
        """
        with quiet(len(self.sent()[1])):
            return self._aggregated(server_round, replies)

    def _aggregated(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        idle = self.unchanged()
        if idle is not None:
            return idle
        layout, theta = self.sent()
        good, answers, failures = self.sort(replies)
        self.tolerate(server_round, failures, len(good))
        method = self.rule.local()
        if failures and method is not None and method.stateful and not method.personal:
            # A client that failed by itself kept its old state; one whose reply was lost on the way did not.
            log.warning(
                "round %d: %s keeps part of its state on the clients; a reply that was lost after its client had "
                "trained leaves the server's part behind for good",
                server_round,
                self.title,
            )
        while True:
            try:
                cohort = self._cohort(server_round, good, answers, theta, layout)
                direction, memory = self._direction(cohort)
                break
            except NonFiniteUpdateError as error:
                failures += [replace(answers[row], error="its update is not finite") for row in error.rows]
                good = [reply for row, reply in enumerate(good) if row not in error.rows]
                answers = [answer for row, answer in enumerate(answers) if row not in error.rows]
                self.tolerate(server_round, failures, len(good))
            except ValueError as error:
                raise RoundError(f"round {server_round}: {type(self.rule).__name__}: {error}") from error
        info = dict(direction.info)
        lr = self.lr(server_round)
        if direction.search is not None:
            lr, trials = self._search(server_round, direction, answers)
            info |= {"server_lr": lr, "num_trials": float(trials)}
        stepped = self._step(server_round, lr, direction)
        self.memory = memory
        self.last = replace(_aggregation(cohort, replace(direction, info=info), failures), system=self.outcome())
        numbers = {name: value for name, value in info.items() if isinstance(value, float)}
        return self.packed(layout, stepped), MetricRecord(dict(numbers))

    def _step(self, server_round: int, lr: float, direction: Direction) -> NDArray[np.float32]:
        stepped = self._stepped(lr, direction)
        if stepped is None:
            raise RoundError(
                f"round {server_round}: the server's step leaves the finite numbers with a server learning rate "
                f"of {lr:g}; lower server.lr"
            )
        return stepped

    def _stepped(self, lr: float, direction: Direction) -> NDArray[np.float32] | None:
        """Return the weights after a step; None where they are not finite."""
        stepped = torch.from_numpy(self.sent()[1]) - lr * direction.vector
        return cast(NDArray[np.float32], stepped.numpy()) if bool(torch.isfinite(stepped).all()) else None

    def _search(self, server_round: int, direction: Direction, answers: Sequence[Answer]) -> tuple[float, int]:
        """Return the first learning rate the rule accepts, and how many it took."""
        search = direction.search
        assert search is not None
        trials: list[tuple[float, Tensor]] = []
        for count, rate in enumerate(search.rates, start=1):
            reached = self._stepped(rate, direction)
            losses = None if reached is None else self._losses(server_round, reached, answers)
            if losses is None:
                continue
            if search.accepts(rate, losses):
                return rate, count
            trials.append((rate, losses))
        return search.otherwise(trials), len(search.rates)

    def _losses(self, server_round: int, theta: NDArray[np.float32], answers: Sequence[Answer]) -> Tensor | None:
        """Return the training losses of this round's clients at other weights; None where one is not finite.

        Raises:
            ClientError: A client that took part in the round does not answer: a step cannot be judged without it.
        """
        assert self._grid is not None, "aggregate_train before configure_train"
        content = pack_request(
            pack_arrays(self.sent()[0].split(theta)), ConfigRecord(), server_round, wants_update=False
        )
        nodes = [cast(int, answer.node) for answer in answers]
        replies = self._grid.send_and_receive(messages(content, nodes, LOSSES), timeout=self.timeout)
        if self.system is not None:
            self.system.ask(self.clients(nodes), theta.size, 1)
        found = {answer.node: answer for answer in map(read, replies)}
        losses = []
        for node, asked in zip(nodes, answers, strict=True):
            answer = found.get(node, replace(asked, numbers={}, error="no answer"))
            problem = answer.error
            if problem is None and self.loss_key not in answer.numbers:
                problem = f'it sent no "{self.loss_key}" in answer to a message of type {LOSSES}'
            if problem is not None:
                failed = replace(asked, error=f"asked for its loss in a line search: {problem}")
                self.tolerate(server_round, [failed], 0)
            losses.append(answer.numbers[self.loss_key])
        column = torch.tensor(losses, dtype=torch.float64)
        return column if bool(torch.isfinite(column).all()) else None

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
            clients=tuple(answer.key for answer in answers),
            reports={name: _column(answers, name) for name in self._reports(answers)},
            server_lr=self.lr(server_round),
            server_round=server_round,
            num_clients=self._num_nodes,
            layers=layout.layers,
        )

    def _reports(self, answers: Sequence[Answer]) -> list[str]:
        wanted = [name for name in self.rule.wants if all(name in answer.numbers for answer in answers)]
        return [*(name for name in self.rule.needs if name != "loss"), *wanted]

    def _direction(self, cohort: Cohort) -> tuple[Direction, dict[str, Any]]:
        if isinstance(self.rule, MemoryRule):
            return self.rule.direction(cohort, self.memory)
        return cast(Rule, self.rule).direction(cohort), self.memory


def _plain(arrays: Any) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.float().cpu().numpy() for name, tensor in arrays.items()}


def _column(answers: Sequence[Answer], name: str) -> Tensor:
    return torch.tensor([answer.numbers.get(name, 0.0) for answer in answers], dtype=torch.float64)


def _aggregation(cohort: Cohort, direction: Direction, failures: Sequence[Answer]) -> Aggregation:
    factors = [] if direction.weights is None else direction.weights.tolist()
    weights = dict(zip(cohort.clients, factors, strict=False))
    return Aggregation(dict(direction.info), weights, tuple(failures))
