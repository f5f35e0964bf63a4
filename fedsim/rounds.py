"""The round loop: drives any Flower Strategy over any Grid, and keeps what every client sent.

Flower's own `Strategy.start` keeps aggregates only, starts at round 1 and calls nobody back.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.averages import Average
from fedsim.engine.task import Patience
from fedsim.errors import FedSimError, RoundError
from fedsim.parameters import Layout
from fedsim.system.plan import Plan
from fedsim.wire import EXAMPLES, Answer, pack_arrays, read, unpack_arrays

Measured = Mapping[str, float | list[float]]
"""Name -> number, or one number per class or group."""

CentralEvaluation = Callable[[int, ArrayRecord], Measured]

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Kept:
    """What the rounds to come depend on beside the model, as it was when a round was aggregated; plain data.

    Attributes:
        strategy: The strategy's memory.
        average: State of the average over rounds; empty without one.
        system: Memory of the simulated devices; None without any.
        clients: Client -> where its state is; None if the grid keeps states in a way of its own.
    """

    strategy: Mapping[str, Any]
    average: Mapping[str, Any]
    system: Mapping[str, Any] | None
    clients: Mapping[int, str] | None


@dataclass(frozen=True)
class Round:
    """What happened in one round.

    Attributes:
        number: From 1; 0 is the evaluation of the initial model.
        arrays: The model after the round, from which training goes on.
        served: The model that was evaluated and is kept: the same, or an average over rounds.
        trained: What each sampled client answered, failures included.
        evaluated: What each client answered to the evaluation; empty where there was none.
        weights: Client -> factor of its update in the server's direction.
        info: The strategy's numbers and words about the round.
        failures: Clients left out of the aggregation or the evaluation, with the cause.
        central: Metrics on the common test set.
        seconds: Phase -> seconds: train, aggregate, evaluate, total.
        kept: What a checkpoint needs beside the model; None where none is due or possible.
        system: What became of the round on the virtual clock, where there is one.
    """

    number: int
    arrays: ArrayRecord
    served: ArrayRecord
    trained: tuple[Answer, ...] = ()
    evaluated: tuple[Answer, ...] = ()
    weights: Mapping[int, float] = field(default_factory=dict)
    info: Mapping[str, float | str] = field(default_factory=dict)
    failures: tuple[Answer, ...] = ()
    central: Measured = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    kept: Kept | None = None
    system: Plan | None = None


class Callback(Protocol):
    """Told about every round as soon as it is finished."""

    def __call__(self, finished: Round) -> None:
        """Take note of a finished round."""
        ...


def run_rounds(
    strategy: Strategy,
    grid: Grid,
    arrays: ArrayRecord,
    *,
    num_rounds: int,
    evaluate_every: int = 1,
    central: CentralEvaluation | None = None,
    callbacks: Sequence[Callback] = (),
    timeout: float | None = None,
    average: Average | None = None,
    after: Round | None = None,
    keep_every: int = 0,
) -> ArrayRecord:
    """Train for a number of rounds and return the final model served.

    Args:
        strategy: Any Flower strategy.
        grid: Any Flower grid.
        arrays: Initial model.
        num_rounds: Number of rounds T.
        evaluate_every: Rounds between evaluations on the clients; the first and last model always are.
        central: Evaluates on a common test set whenever the clients are.
        callbacks: Told about every round.
        timeout: Seconds to wait for the clients of one round.
        average: Average over rounds that is evaluated and returned in place of the last model.
        after: The last finished round of a run to go on with, whose `kept` the strategy, the average and the grid
            have been given back; None begins with round 0.
        keep_every: Rounds between two that are handed over with what a checkpoint needs, the last one always; 0 for
            none.

    Raises:
        ClientError: A client failed and the strategy does not tolerate it.
        RoundError: A round gave no model.
    """
    strategy.summary()
    loop = _Loop(strategy, grid, central, timeout, average)
    served, first = arrays, 0
    if after is not None:
        arrays, served, first = after.arrays, after.served, after.number + 1
    for number in range(first, num_rounds + 1):
        evaluates = number % evaluate_every == 0 or number == num_rounds
        keeps = keep_every > 0 and (number % keep_every == 0 or number == num_rounds)
        finished = loop.round(number, arrays, evaluates=evaluates, keeps=keeps, last=number == num_rounds)
        arrays, served = finished.arrays, finished.served
        for callback in callbacks:
            callback(finished)
    return served


class _Loop:
    def __init__(
        self,
        strategy: Strategy,
        grid: Grid,
        central: CentralEvaluation | None,
        timeout: float | None,
        average: Average | None,
    ) -> None:
        self._strategy, self._grid, self._central, self._timeout = strategy, grid, central, timeout
        self._average = average
        # A round depends on the model alone, not on how the one before is evaluated or written down: so where the
        # grid can be given work without waiting, workers train while that is done.
        self._ahead = getattr(strategy, "begins_ahead", False) and hasattr(grid, "submit")
        self._begun: Callable[[], list[Message]] | None = None
        self._remembers = True

    def round(self, number: int, arrays: ArrayRecord, *, evaluates: bool, keeps: bool, last: bool) -> Round:
        """Train (not in round 0), evaluate (when due), and set the next round going (unless this is the last)."""
        clock = _Clock()
        trained: list[Message] = []
        if number > 0:
            trained, arrays = self._train(number, arrays, clock)
        served = self._served(arrays) if number > 0 else arrays
        kept = self._kept() if keeps else None  # now: whoever reads it later must not see a later round's
        did = getattr(self._strategy, "last", None) if number > 0 else None
        evaluation = self._evaluation(number, served) if evaluates else None
        if self._ahead and not last:
            self._begun = self._begin_ahead(number + 1, arrays)
        central = self._central(number, served) if evaluates and self._central else {}
        evaluated = evaluation() if evaluation is not None else []
        if evaluates:
            self._strategy.aggregate_evaluate(number, evaluated)
        clock.lap("evaluate")
        answers = tuple(read(reply) for reply in evaluated)
        _refuse_divergence(number, answers)
        return Round(
            number=number,
            arrays=arrays,
            served=served,
            trained=tuple(read(reply) for reply in trained),
            evaluated=answers,
            weights=did.weights if did else {},
            info=did.info if did else {},
            failures=(*(did.failures if did else ()), *(a for a in answers if a.error is not None)),
            central=central,
            seconds=clock.seconds(),
            system=getattr(did, "system", None),
            kept=kept,
        )

    def _kept(self) -> Kept | None:
        """Return the present state of everything; memories are replaced from round to round, never edited."""
        if not self._remembers:
            return None
        try:
            memory = self._strategy.memory  # type: ignore[attr-defined] # ours have it, others may
        except (AttributeError, TypeError) as error:
            self._remembers = False
            log.warning("no checkpoints: what the strategy remembers is not known as plain data: %s", error)
            return None
        states = getattr(self._grid, "states", None)
        return Kept(
            strategy=memory,
            average=self._average.state() if self._average is not None else {},
            system=getattr(getattr(self._strategy, "system", None), "memory", None),
            clients=states.index() if states is not None else None,
        )

    def _begin(self, number: int, arrays: ArrayRecord, *, ahead: bool = False) -> Callable[[], list[Message]]:
        """Ask this round's clients to train; return what waits for their replies."""
        return self._send(self._strategy.configure_train(number, arrays, ConfigRecord(), self._grid), ahead=ahead)

    def _begin_ahead(self, number: int, arrays: ArrayRecord) -> Callable[[], list[Message]]:
        """Do the same while the round before is not over; what that one has found outlives a failure here."""
        try:
            return self._begin(number, arrays, ahead=True)
        except FedSimError as error:
            found = error

        def fail() -> list[Message]:
            raise found

        return fail

    def _train(self, number: int, arrays: ArrayRecord, clock: _Clock) -> tuple[list[Message], ArrayRecord]:
        replies = (self._begun or self._begin(number, arrays))()
        self._begun = None
        clock.lap("train")
        aggregated, _ = self._strategy.aggregate_train(number, replies)
        clock.lap("aggregate")
        if aggregated is None:
            raise RoundError(f"round {number}: the strategy gave no model; {_failures(replies)}")
        return replies, aggregated

    def _served(self, arrays: ArrayRecord) -> ArrayRecord:
        if self._average is None:
            return arrays
        named = unpack_arrays(arrays)
        layout = Layout.of(named)
        return pack_arrays(layout.split(self._average.add(layout.join(named))))

    def _evaluation(self, number: int, arrays: ArrayRecord) -> Callable[[], list[Message]]:
        """Ask the clients to evaluate; return what waits for their replies."""
        return self._send(self._strategy.configure_evaluate(number, arrays, ConfigRecord(), self._grid))

    def _send(self, messages: Iterable[Message], *, ahead: bool = False) -> Callable[[], list[Message]]:
        sent = list(messages)
        if not sent:
            return list
        if self._ahead:
            patience = Patience.BEHIND if ahead else Patience.FAIR
            submitted = cast(Any, self._grid).submit(sent, timeout=self._timeout, patience=patience)
            return cast(Callable[[], list[Message]], submitted.replies)
        return lambda: list(self._grid.send_and_receive(sent, timeout=self._timeout))


class _Clock:
    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {"train": 0.0, "aggregate": 0.0, "evaluate": 0.0}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._laps[phase] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        return {**self._laps, "total": time.perf_counter() - self._start}


def _refuse_divergence(number: int, answers: Sequence[Answer]) -> None:
    """Stop when the model gives some client no finite test loss: it would vanish from every mean over clients.

    Raises:
        RoundError: Names the first such client.
    """
    for answer in answers:
        loss = answer.numbers.get("test_loss", 0.0)
        if not math.isfinite(loss) and answer.numbers.get(EXAMPLES, 0.0) > 0:
            raise RoundError(
                f"round {number}: the model's test loss on client {answer.client} is {loss}; it has diverged, "
                "lower server.lr or client.lr"
            )


def _failures(replies: Sequence[Message]) -> str:
    failed = [answer for answer in map(read, replies) if answer.error is not None]
    if not failed:
        return f"{len(replies)} clients answered"
    return f"client {failed[0].client}: {failed[0].error} ({len(failed)} of {len(replies)} clients failed)"
