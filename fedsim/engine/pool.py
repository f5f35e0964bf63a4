"""Whole pieces of work in parallel: one at a time in each process of a pool, as Ray actors or in this process.

Unlike a grid, which spreads the clients of one run, a pool spreads runs: they share nothing, so no worker ever
waits for another.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from fedsim.engine.cluster import actor_class, cause_of, count_workers, keep_to, start_ray, starting
from fedsim.engine.local import check_device

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings

Order = TypeVar("Order")
Tell = Callable[[Any], None]
Work = Callable[[Any, Tell], Any]
"""Does one order, says meanwhile how far it is, and returns what came of it."""

LIVES = 2
"""Workers that an order may cost before it is given up."""

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Said(Generic[Order]):
    """Something said about an order while it is done."""

    order: Order
    what: Any


@dataclass(frozen=True)
class Finished(Generic[Order]):
    """What came of an order."""

    order: Order
    result: Any


@dataclass(frozen=True)
class Lost(Generic[Order]):
    """An order whose workers died.

    Attributes:
        again: Whether it is begun once more.
    """

    order: Order
    cause: str
    again: bool


class LocalPool:
    """One piece of work after the other, in this process.

    Args:
        work: What is done with an order.
    """

    num_workers = 1

    def __init__(self, work: Work) -> None:
        self._work = work

    def run(self, orders: Sequence[Order], tell: Callable[[Said[Order]], None]) -> Iterator[Finished[Order]]:
        """Yield what comes of each order; `tell` hears how far they are."""
        for order in orders:

            def said(what: Any, order: Order = order) -> None:
                tell(Said(order, what))

            yield Finished(order, self._work(order, said))

    def close(self) -> None:
        """Do nothing: there is nobody to send home."""


class RayPool:
    """Work on Ray workers of this machine, an order each.

    Args:
        work: What is done with an order; importable by the workers.
        settings: Number of workers, threads, share of a GPU, memory.
        most: Workers that can be of use.

    Raises:
        EngineError: No GPU where one was asked for, or Ray cannot start.
    """

    def __init__(self, work: Work, settings: EngineSettings, most: int) -> None:
        check_device(settings)
        self._idle: list[Any] = []
        self._workers: list[Any] = []
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            start_ray(settings)
        with starting(self.close):
            self._settings, self._work = settings, work
            self.num_workers = min(count_workers(settings), most)
            self._actor = actor_class(_Worker, settings)
            self._idle.extend(self._hired() for _ in range(self.num_workers))

    def run(
        self, orders: Sequence[Order], tell: Callable[[Said[Order]], None]
    ) -> Iterator[Finished[Order] | Lost[Order]]:
        """Yield what comes of each order, as it comes; `tell` hears how far they are.

        Raises:
            EngineError: Workers cannot be started any more.
        """
        waiting = deque((order, 1) for order in orders)
        busy: dict[Any, tuple[Any, Order, int]] = {}
        while waiting or busy:
            while waiting and self._idle:
                order, life = waiting.popleft()
                worker = self._idle.pop()
                stream = worker.do.options(num_returns="streaming").remote(order)
                busy[stream] = worker, order, life
            ready: Any = ray.wait(list(busy), num_returns=1, fetch_local=False)[0]  # streams, not references
            for stream in ready:
                worker, order, life = busy[stream]
                try:
                    done, what = ray.get(next(stream))
                except (StopIteration, RayError) as error:
                    del busy[stream]
                    if isinstance(error, RayTaskError):  # the worker lives, its work raised what nobody foresaw
                        self._idle.append(worker)
                        yield Lost(order, cause_of(error), again=False)
                        continue
                    cause = "it ended without a word" if isinstance(error, StopIteration) else cause_of(error)
                    self._workers.remove(worker)
                    self._dismissed(worker)
                    again = life < LIVES
                    yield Lost(order, cause, again)
                    self._idle.append(self._hired())
                    if again:
                        waiting.append((order, life + 1))
                    continue
                if not done:
                    tell(Said(order, what))
                    continue
                del busy[stream]
                self._idle.append(worker)
                yield Finished(order, what)

    def close(self) -> None:
        """End the workers, in the middle of an order if need be, and Ray if it was started here."""
        for worker in self._workers:  # one that nobody refers to any more would finish its order first
            self._dismissed(worker)
        self._idle, self._workers = [], []
        if self._own_ray:
            ray.shutdown()

    def _hired(self) -> Any:
        settings = self._settings
        worker = self._actor.remote(self._work, settings.threads_per_worker, settings.gpus_per_worker)
        self._workers.append(worker)
        return worker

    def _dismissed(self, worker: Any) -> None:
        with contextlib.suppress(RayError):
            ray.kill(worker)


class _Worker:
    """Does one order at a time."""

    def __init__(self, work: Work, threads: int, share: float) -> None:
        keep_to(threads, share)
        self._work = work

    def do(self, order: Any) -> Iterator[tuple[bool, Any]]:
        """Yield (False, what is said) while it is done, and at last (True, what came of it)."""
        heard: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                heard.put(("result", self._work(order, lambda what: heard.put(("said", what)))))
            except BaseException as error:
                heard.put(("error", error))

        # The work says things where it is in the middle of something; a generator can only speak at its own level.
        threading.Thread(target=work, daemon=True).start()
        while True:
            kind, what = heard.get()
            if kind == "error":
                raise what
            yield kind == "result", what
            if kind == "result":
                return
