"""StockStrategy: Flower's own strategies under the platform's sampling, checks and seeds.

The platform draws the clients, checks what they send and hands it over by client, so that a run is compared with
one of ours on the same clients and its sums have one order. What the strategy does with it is Flower's.
"""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray
from torch import Tensor

from fedsim import seeds
from fedsim.errors import FedSimError, RoundError
from fedsim.system.model import System
from fedsim.wire import ARRAYS, CLIENT, EXAMPLES, METRICS, UPDATE, Answer, pack_arrays, read_update, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.seeded import Aggregation, SeededStrategy, log
from strategies.stock_options import StockOptions, flower_log

RECORD = "ArrayRecord"
"""Key under which a memory holds what was an ArrayRecord."""


class StockStrategy(SeededStrategy):
    """Runs one of Flower's strategies.

    Args:
        options: Which, and its options.
        server_lr: Learning rate of the rule of ours that a wrapper wraps; None takes the rule's default.
        server_lr_decay: Factor on server_lr after each round.
        timeout: Seconds to wait for the losses of a line search's trial; None waits without end.
        settings: Those of `SeededStrategy`: clients_per_round, fraction_train, min_available_nodes, seed,
            max_failures.

    Attributes:
        inner: Flower's strategy.
    """

    def __init__(
        self,
        options: StockOptions,
        *,
        server_lr: float | None = None,
        server_lr_decay: float = 1.0,
        timeout: float | None = None,
        **settings: Any,
    ) -> None:
        needs, wants = options.reports()
        super().__init__(options.plugin_name, needs, wants, **settings)
        self.options = options
        inside = {"server_lr": server_lr, "server_lr_decay": server_lr_decay, "timeout": timeout}
        self._settings = {**inside, **settings}
        with flower_log():
            self.inner = self._made()
        self._start = _numbers(self.inner)

    @property
    def memory(self) -> dict[str, Any]:
        """What the strategy keeps between rounds, as plain data that a checkpoint can hold.

        Raises:
            TypeError: It keeps something that is no plain data; says what.
        """
        with flower_log(warnings=False):
            return _kept(self.inner, self._made())

    @memory.setter
    def memory(self, kept: dict[str, Any]) -> None:
        with flower_log(warnings=False):
            self.inner = self._made()
        _restore(self.inner, kept)

    def summary(self) -> None:
        """Log what this strategy is."""
        log.info("strategy %s(%s)", self.title, self.options)
        for note in self.options.notes():
            log.warning("%s: %s", self.title, note)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw this round's clients and let the strategy write to them.

        Raises:
            RoundError: The number of clients is not the one the strategy's options speak of.
        """
        self.remember(arrays)
        # A rule of ours inside draws the same clients itself: it must know how many there are in all.
        shown: Grid | _Drawn = grid
        if self.options.rule is None:
            shown = _Drawn(self.draw(server_round, grid))
            if self.system is not None and self._too_few(self.system):
                return []
        with self._flower(server_round, "configure"):
            request = self.request(config) if self.options.rule is None else config
            written = list(self.inner.configure_train(server_round, arrays, request, cast(Grid, shown)))
        self._refuse_shortage(server_round, len(written))
        return sorted(written, key=lambda message: message.metadata.dst_node_id)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply and let the strategy aggregate those that are sound.

        Raises:
            ClientError: More clients failed than max_failures allows; names the first and its cause.
            RoundError: Too few clients are left, the strategy gave no model, or it left the finite numbers.
        """
        idle = self.unchanged()
        if idle is not None:
            return idle
        layout, _ = self.sent()
        good, answers, failures = self._sound(replies)
        self.tolerate(server_round, failures, len(good))
        self._refuse_shortage(server_round, len(good))
        if not sum(answer.numbers[EXAMPLES] for answer in answers) > 0:
            raise RoundError(f"round {server_round}: the clients have no examples")
        ordinary = self._ordinary(good, answers)
        with self._flower(server_round, "aggregate"):
            arrays, metrics = self.inner.aggregate_train(server_round, ordinary)
            if arrays is None:
                raise RoundError(f"round {server_round}: {self.title} gave no model; log.txt may say why")
            stepped = layout.join(unpack_arrays(arrays))
        if not np.isfinite(stepped).all():
            rate = f"strategy.{self.options.rate}" if self.options.rate else "client.lr"
            raise RoundError(f"round {server_round}: {self.title} left the finite numbers; lower {rate}")
        if metrics is not None:
            metrics.pop(CLIENT, None)
        self.last = replace(self._aggregation(failures), system=self.outcome())
        return pack_arrays(layout.split(stepped)), metrics

    def _made(self) -> Strategy:
        inside = self.options.inside
        if inside is None:
            return self.options.build()
        if isinstance(inside, StockOptions):
            return self.options.build(inside.build())
        return self.options.build(RuleStrategy(inside, **self._settings))

    @contextmanager
    def _flower(self, server_round: int, phase: str) -> Iterator[None]:
        """Run code of Flower's: quiet, on streams of its own, with errors that name the round.

        Flower draws clients and noise from the global generators of Python and NumPy.
        """
        seed = seeds.derive(self.seed, "flower", phase, server_round)
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            with flower_log(), _few_to_collect(), np.errstate(all="ignore"):  # what is not finite is found later
                yield
        except FedSimError:
            raise
        except Exception as error:
            raise RoundError(f"round {server_round}: {self.title}: {type(error).__name__}: {error}") from error
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002

    def _too_few(self, system: System) -> bool:
        """Say whether the devices leave the strategy nobody, or fewer than it can do with."""
        counted = len(system.plan.counted)
        shortage = self.options.shortage(counted) if counted else []
        if shortage:
            system.abandon()
        return not system.plan.counted

    def _refuse_shortage(self, server_round: int, count: int) -> None:
        for problem in self.options.shortage(count):
            raise RoundError(f"round {server_round}: strategy.{problem}")

    def _sound(self, replies: Iterable[Message]) -> tuple[list[Message], list[Answer], list[Answer]]:
        """Sort as for every strategy, and leave out updates that Flower would average without a look."""
        layout, theta = self.sent()
        good: list[Message] = []
        answers: list[Answer] = []
        complete, said, failures = self.sort(replies)
        for reply, answer in zip(complete, said, strict=True):
            problem = self._unsound(read_update(reply, theta, layout))
            if problem is None:
                good.append(reply)
                answers.append(answer)
            else:
                failures.append(replace(answer, error=problem))
        return good, answers, failures

    def _unsound(self, update: NDArray[np.float32]) -> str | None:
        if not np.isfinite(update).all():
            return "its update is not finite"
        if self.options.nested and not update.any():
            return f"its update is zero, and {self.title} divides by its norm"
        return None

    def _ordinary(self, replies: Sequence[Message], answers: Sequence[Answer]) -> list[Message]:
        """Return copies of the replies as Flower's strategies want them: one record of weights, one of metrics.

        They are copies because some strategies take replies apart. All hold the metrics that every client sent.
        """
        layout, theta = self.sent()
        common = [name for name in answers[0].numbers if all(name in answer.numbers for answer in answers)]
        made = []
        for reply, answer in zip(replies, answers, strict=True):
            twin = copy.copy(reply)
            name, record = next(iter(twin.content.array_records.items()))
            if name == UPDATE:  # what a rule of ours inside a wrapper asks for
                record = pack_arrays(layout.split(theta - read_update(reply, theta, layout)))
            metrics = MetricRecord({metric: answer.numbers[metric] for metric in common})
            twin.content = RecordDict({ARRAYS: ArrayRecord(dict(record.items())), METRICS: metrics})
            made.append(twin)
        return made

    def _aggregation(self, failures: Sequence[Answer]) -> Aggregation:
        info: dict[str, float | str] = {
            name: value for name, value in _numbers(self.inner).items() if value != self._start.get(name)
        }
        rule = getattr(self.inner, "strategy", None)
        if isinstance(rule, RuleStrategy):
            return Aggregation({**rule.last.info, **info}, rule.last.weights, tuple(failures))
        return Aggregation(info, {}, tuple(failures))


class _Drawn:
    """A grid that shows the clients of one round alone."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return list(self._nodes)


@contextmanager
def _few_to_collect() -> Iterator[None]:
    """Hide what there is from the garbage collector: Flower runs it for every client, through the whole process."""
    frozen = gc.get_freeze_count() > 0
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def _numbers(strategy: Strategy) -> dict[str, float]:
    """Return a strategy's own numbers; those that move, such as an adaptive clipping norm, go on record."""
    return {name: value for name, value in vars(strategy).items() if isinstance(value, float)}


def _kept(strategy: Strategy, fresh: Strategy) -> dict[str, Any]:
    """Return what a strategy has and a fresh one has not."""
    kept: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        before = getattr(fresh, name, None)
        if isinstance(value, RuleStrategy):
            kept[name] = {"memory": value.memory}
        elif isinstance(value, Strategy):
            kept[name] = _kept(value, cast(Strategy, before))
        elif isinstance(value, ArrayRecord | dict | list):
            if len(value) > 0:  # containers may be filled in place, so they are not compared
                kept[name] = _encoded(value, name)
        elif isinstance(value, np.ndarray) or (value is not before and value != before):
            kept[name] = _encoded(value, name)
    return kept


def _restore(strategy: Strategy, kept: dict[str, Any]) -> None:
    for name, value in kept.items():
        inside = getattr(strategy, name)
        if isinstance(inside, RuleStrategy):
            inside.memory = value["memory"]
        elif isinstance(inside, Strategy):
            _restore(inside, value)
        else:
            setattr(strategy, name, _decoded(value))


def _encoded(value: Any, place: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value))
    if isinstance(value, ArrayRecord):
        return {RECORD: _encoded(unpack_arrays(value), place)}
    if isinstance(value, dict):
        return {key: _encoded(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_encoded(item, f"{place}.{row}") for row, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{place}: {type(value).__name__} is no plain data, so no checkpoint can hold it")


def _decoded(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy().copy()
    if isinstance(value, dict) and list(value) == [RECORD]:
        return pack_arrays(_decoded(value[RECORD]))
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value
