"""A contender in a process of its own, which makes rounds when it is told to.

The one who measures and the contender talk over a pipe: ("turn", rounds) is answered with the seconds of each
round, "stop" with the weights reached.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.simulators.workloads import Floats, Workload, workload_of

PATIENCE_S = 300.0
"""Seconds after which a contender that says nothing is given up."""

MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1073741824", "MALLOC_MMAP_THRESHOLD_": "1073741824"}
"""Keeps glibc from giving large freed blocks back to the kernel at every step."""


class ContenderError(Exception):
    """A contender cannot go on; says why."""


class _StopError(Exception):
    """No more rounds are wanted."""


class Meter:
    """The contender's end: takes the time of each round, and waits between turns.

    A contender calls `begin` once it could start a round, and `lap` after every round.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._left = 0
        self._seconds: list[float] = []
        self._theta: Callable[[], Floats] | None = None
        self._start = 0.0

    def begin(self) -> None:
        self._wait()

    def lap(self, theta: Callable[[], Floats]) -> None:
        """Note that a round has ended with the weights that `theta` returns."""
        self._seconds.append(time.perf_counter() - self._start)
        self._theta = theta
        self._left -= 1
        if self._left == 0:
            self._pipe.send(("seconds", self._seconds))
            self._wait()
        self._start = time.perf_counter()

    def _wait(self) -> None:
        order = self._pipe.recv()
        if order == "stop":
            assert self._theta is not None, "stop comes after a turn"
            self._pipe.send(("theta", self._theta()))
            raise _StopError
        _, self._left = order
        self._seconds = []
        self._start = time.perf_counter()

    @contextmanager
    def until_stopped(self) -> Iterator[None]:
        """Leave the block quietly when no more rounds are wanted."""
        with suppress(_StopError):
            yield


@dataclass(frozen=True)
class Contender:
    """One way of making rounds.

    Attributes:
        key: Its name in the JSON file.
        title: Its name in the table.
        body: "module:function" of this package; called with a workload and a meter, it makes rounds until stopped.
        environment: Set for its processes.
        restless: Burns time while it waits, so it is stopped as a process between its turns.
    """

    key: str
    title: str
    body: str
    environment: Mapping[str, str] = field(default_factory=dict)
    restless: bool = False


class Seat:
    """The measuring end of one contender.

    Raises:
        ContenderError: It fails before its first round.
    """

    def __init__(self, contender: Contender, workload: Workload, patience_s: float = PATIENCE_S) -> None:
        self._contender, self._patience_s = contender, patience_s
        spawn = get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_live, args=(contender.body, workload.name, theirs))
        start = time.perf_counter()
        with _environment(contender.environment):
            self._process.start()
        theirs.close()
        try:
            self.turn(1)
        except BaseException:
            self.leave()
            raise
        self.first_round = time.perf_counter() - start

    def turn(self, rounds: int) -> list[float]:
        """Return the seconds of each of so many rounds."""
        self._signal("SIGCONT")
        seconds: list[float] = self._ask(("turn", rounds))
        self._signal("SIGSTOP")
        return seconds

    def private_bytes(self) -> int | None:
        """Return the memory of its first process that no other shares; None where the system does not say."""
        try:
            lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))

    def end(self) -> Floats:
        """Stop it and return the weights it reached."""
        self._signal("SIGCONT")
        theta: Floats = self._ask("stop")
        self.leave()
        return theta

    def leave(self) -> None:
        """End the process, kindly if it lets us."""
        self._signal("SIGCONT")
        self._pipe.close()  # one that waits for an order sees the end of the pipe
        self._process.join(20.0)
        for end in (self._process.terminate, self._process.kill):
            if self._process.is_alive():
                end()
                self._process.join(5.0)

    def _ask(self, order: object) -> Any:
        try:
            self._pipe.send(order)
            ready = connection.wait([self._pipe, self._process.sentinel], self._patience_s)
            if self._pipe not in ready:
                raise ContenderError("its process died" if ready else f"no answer within {self._patience_s:g} s")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise ContenderError("its process died") from error
        if kind == "error":
            raise ContenderError(answer)
        return answer

    def _signal(self, name: str) -> None:
        if self._contender.restless and hasattr(signal, name) and self._process.is_alive():
            os.kill(self._process.pid or 0, getattr(signal, name))


def _live(body: str, name: str, pipe: Connection) -> None:
    meter = Meter(pipe)
    module, _, function = body.partition(":")
    try:
        # Imported here, so that a contender whose library is missing stops nobody else.
        found = getattr(import_module(f"benchmarks.simulators.{module}"), function)
        with meter.until_stopped():
            found(workload_of(name), meter)
    except (EOFError, BrokenPipeError):
        return  # the one who measures is gone
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Give a process started inside the block these variables, and malloc's only if they are among them."""
    names = {*values, *MALLOC}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
