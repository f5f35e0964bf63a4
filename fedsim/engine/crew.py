"""The crew on Ray: workers on every machine of a cluster, started again when they die.

Ray places the processes, counts GPUs and says when one is gone. A worker on the driver's machine is then spoken to
through a socket (0.3 ms there and back where a Ray call takes 4) and boards; one elsewhere through Ray, which
brings the weights once to each machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from fedsim.engine.board import PAGE, Board, Probe
from fedsim.engine.cluster import actor_class, cause_of, count_workers, start_ray, starting
from fedsim.engine.desk import IDLE
from fedsim.engine.jobs import Answered, Died, Done, Job, Member
from fedsim.engine.local import check_device
from fedsim.engine.scratch import OwnedFolder
from fedsim.engine.states import States, read_states, write_states
from fedsim.engine.task import BlockApp, Task
from fedsim.engine.worker import Hello, Worker
from fedsim.errors import EngineError

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings

START_S = 300.0
"""Seconds that a worker may take to import PyTorch and answer."""

LATECOMERS_S = 60.0
"""Seconds that a run waits for the other workers when the first is up."""

STILLBORN = 3
"""Workers in a row that may die before they are ready."""

LINE_S = 60.0
"""Seconds that a worker may stop in the middle of a message, or not listen, before it counts as lost."""

FAREWELL_S = 3.0
"""Seconds to wait for Ray to say why a worker is gone."""

log = logging.getLogger("fedsim")


@dataclass(eq=False)
class Place(Member):
    """A place for a worker.

    Attributes:
        actor: Ray's handle of who has it now.
        life: How many had it before.
        line: The socket to a worker of this machine; None where Ray carries everything.
        process: A handle of its process; None where Ray carries everything.
        end: Ray's promise that the worker has left its socket.
        since: When this life began.
        hello: What the worker says of itself.
        jobs: What it was sent through Ray, in order.
        results: What Ray has of them.
    """

    actor: Any = None
    life: int = 0
    line: Connection | None = None
    process: int | None = None
    end: Any = None
    since: float = 0.0
    hello: Hello | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)


class RayCrew:
    """Workers as Ray actors.

    Args:
        app: What they answer with; travels to each machine once.
        settings: Number of workers, threads, share of a GPU, memory, and which Ray.
        states: Where clients' states are.

    Raises:
        EngineError: No GPU where one was asked for, or Ray or the workers cannot start.
    """

    def __init__(self, app: BlockApp, settings: EngineSettings, states: States) -> None:
        self._settings, self._states = settings, states
        check_device(settings)  # of the driver: models are tried there, and evaluated on the common test set
        self._own_ray = not ray.is_initialized()
        self._stored: tuple[Task, Any] | None = None
        self._stillborn = 0
        self._inbox: deque[tuple[str, Place, int, Any]] = deque()
        if self._own_ray:
            start_ray(settings)
        self.members: list[Member] = []
        self._probe: Probe
        self._exits = contextlib.ExitStack()
        with starting(self.close):
            num_workers = count_workers(settings)
            self._open(num_workers)
            self._shared = ray.put(app)
            self._actor = actor_class(Worker, settings)
            for number in range(num_workers):
                place = Place(number)
                self.members.append(place)
                self._launch(place)
            self._gather()

    def send(self, member: Member, job: Job, task: Task) -> None:
        """Send a job on its way."""
        place = _place(member)
        if place.line is not None:
            try:
                place.line.send(job)
            except OSError:  # gone, or deaf: it is noticed when it is listened to
                _end(place)
            return
        if self._stored is None or self._stored[0] is not task:
            try:
                self._stored = task, ray.put(task.content)
            except Exception as error:  # its store, or the disk behind it, is full
                raise EngineError(f"engine: Ray cannot take a request: {cause_of(error)}") from error
        if job.states:
            job = _with_states(job, self._states)
        call = place.actor.run.remote(replace(job, request=None), self._stored[1])
        place.jobs[job.number] = job
        self._watch(call, f"job {job.number}", place)

    def events(self, timeout: float | None) -> list[Answered | Died]:
        """Return what happened, after at most `timeout` seconds if nothing does."""
        starting = [place for place in map(_place, self.members) if not place.up]
        if starting:
            patience = max(0.0, min(place.since for place in starting) + START_S - time.monotonic())
            timeout = patience if timeout is None else min(timeout, patience)
        lines = {place.line: place for place in map(_place, self.members) if place.line is not None}
        found: list[Answered | Died] = []
        for thing in wait([self._bell.heard, self._listener, *lines], timeout):
            if thing is self._bell.heard:
                os.read(self._bell.heard, PAGE)
            elif thing is self._listener:
                self._welcome()
            else:
                found += self._read(lines[thing])  # type: ignore[index]
        while self._inbox:
            found += self._told(*self._inbox.popleft())
        for place in starting:
            if not place.up and time.monotonic() - place.since > START_S:
                self._born_dead(place, f"it did not answer within {START_S:g} s")
        return found

    def restart(self, member: Member) -> None:
        """End whoever has a place, however busy, and start another."""
        place = _place(member)
        self._part(place)
        self._launch(place)

    def marker(self, member: Member) -> tuple[int, int]:
        """Return (first, count): the rows of its job that a worker is busy with; (-1, 0) if that is not known."""
        first, count = self._markers[member.number].tolist()
        return first, count

    def change(self, app: BlockApp, states: States) -> None:
        """Give all workers another application; none may have anything to do."""
        self._shared, self._states, self._stored = ray.put(app), states, None
        self._probe.close()  # what it looked for may have gone with the states before
        self._probe = Probe([self._folder, states.folder])
        places = [_place(member) for member in self.members]
        told = []
        for place in places:
            if not place.up:
                self.restart(place)
                continue
            place.up = False
            with contextlib.suppress(OSError):  # one that has died since it was heard of last
                if place.line is not None:
                    place.line.send(None)
            told.append((place, place.actor.take.remote(self._shared)))  # after the last of its jobs
        for place, taken in told:
            try:
                ray.get(taken, timeout=START_S)
            except RayError as error:
                log.warning("worker %d died: %s; another takes its place", place.number, cause_of(error))
                self.restart(place)
                continue
            if place.line is not None:
                _hang_up(place)
            place.since = time.monotonic()
            assert place.hello is not None
            self._greet(place, place.hello)
        self._gather()

    def _gather(self) -> None:
        """Wait for the workers; once one is up, for the others a while: who comes later is welcome later."""
        first: float | None = None
        while not all(member.up for member in self.members):
            up = any(member.up for member in self.members)
            first = (first or time.monotonic()) if up else None
            if first is not None and time.monotonic() - first > LATECOMERS_S:
                log.warning("the run begins with %d workers", sum(member.up for member in self.members))
                return
            self.events(LATECOMERS_S)

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        places = [_place(member) for member in self.members]
        for place in places:
            self._kill(place)
        # Whom Ray was asked to end it writes no obituary for, if it is given the time.
        going = {place.process for place in places if place.process is not None}
        deadline = time.monotonic() + FAREWELL_S
        while going and time.monotonic() < deadline:
            going.difference_update(wait(list(going), deadline - time.monotonic()))
        for place in places:
            self._part(place)
        self.members = []
        self._exits.close()
        if self._own_ray:
            ray.shutdown()

    def _open(self, num_workers: int) -> None:
        """Make what workers of this machine are spoken to through."""
        self._owned = OwnedFolder()
        self._exits.callback(self._owned.close)
        folder = self._owned.path
        self._listener = self._exits.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(folder / "crew"))
        self._listener.listen(num_workers)
        self._address = str(folder / "crew")
        self._bell = _Bell()
        self._exits.callback(self._bell.close)
        self._folder = folder
        self._probe = Probe([folder, self._states.folder])
        self._exits.callback(lambda: self._probe.close())
        self._board = Board(max(PAGE, 8 * num_workers), folder)
        self._exits.callback(self._board.close)
        note = self._board.post(b"", (num_workers, 2))
        self._markers = self._board.rows(note).view(np.int32)

    def _launch(self, place: Place) -> None:
        place.life += 1
        place.up, place.since = False, time.monotonic()
        place.jobs.clear()
        place.results.clear()
        self._markers[place.number] = IDLE
        place.actor = self._actor.remote(
            self._shared, self._settings.threads_per_worker, self._settings.gpus_per_worker
        )
        self._watch(place.actor.ready.remote(self._probe.paths, self._probe.token), "ready", place)

    def _part(self, place: Place) -> None:
        """End whoever has a place."""
        _end(place)
        _hang_up(place)
        place.up = False
        self._kill(place)

    def _kill(self, place: Place) -> None:
        """Ask Ray to end whoever has a place."""
        if place.actor is not None and ray.is_initialized():
            with contextlib.suppress(Exception):
                ray.kill(place.actor)

    def _watch(self, call: Any, what: str, place: Place) -> None:
        """Ask to be woken when Ray has the result of a call."""
        life, bell, inbox = place.life, self._bell, self._inbox

        def told(future: Any) -> None:
            inbox.append((what, place, life, future))
            bell.ring()

        call.future().add_done_callback(told)

    def _told(self, what: str, place: Place, life: int, future: Any) -> list[Answered | Died]:
        """Take note of something Ray says."""
        if life != place.life:
            return []  # of one who had the place before
        error = future.exception()
        if what == "ready":
            if error is not None:
                self._born_dead(place, cause_of(error))
            else:
                self._greet(place, future.result())
            return []
        if what == "serve":  # it ends without an error when the worker is given another application
            return [] if error is None else self._gone(place, error)
        place.results[int(what.removeprefix("job "))] = future
        found: list[Answered | Died] = []
        # A short answer may overtake a long one before it, which takes longer to come here.
        while place.jobs and (number := next(iter(place.jobs))) in place.results:
            job, future = place.jobs.pop(number), place.results.pop(number)
            error = future.exception()
            # Whatever the application raises comes back as an answer: all other errors mean that nobody is there.
            if error is not None and not isinstance(error, RayTaskError):
                return [*found, *self._lost(place, error)]
            done: Done = Done(number, None, error=cause_of(error)) if error is not None else future.result()
            if job.file is not None and done.error is None:
                slips = write_states(self._states.folder, job.file, list(done.kept))  # type: ignore[arg-type]
                done = replace(done, kept=slips)
            found.append(Answered(place, done))
        return found

    def _greet(self, place: Place, hello: Hello) -> None:
        """Find out how to speak to a worker that is up."""
        place.hello = hello
        place.worked.pid, place.worked.node = hello.pid, hello.node
        place.worked.name = f"worker {place.number}"
        if hello.near:
            place.end = place.actor.serve.remote(
                self._address, place.number, place.life, self._board.path, str(self._states.folder)
            )
            self._watch(place.end, "serve", place)
        else:
            self._started(place)

    def _welcome(self) -> None:
        """Let a worker of this machine in."""
        accepted, _ = self._listener.accept()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            accepted.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(LINE_S), 0))
        pid, *_ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        line = Connection(accepted.detach())
        try:
            number, life = line.recv()
        except (EOFError, OSError):  # it died on the threshold; Ray tells whose it was
            line.close()
            return
        place = _place(self.members[number])
        if life != place.life:
            line.close()
            return
        place.line = line
        with contextlib.suppress(OSError):
            place.process = os.pidfd_open(pid)
        self._started(place)

    def _started(self, place: Place) -> None:
        self._stillborn = 0
        place.up = True
        log.info("worker %d is process %d on %s", place.number, place.worked.pid, place.worked.node)

    def _read(self, place: Place) -> list[Answered | Died]:
        assert place.line is not None
        try:
            return [Answered(place, place.line.recv())]
        except (EOFError, OSError):
            _end(place)  # one that stopped in the middle of a message is not gone yet
            error: BaseException | None = None
            with contextlib.suppress(TimeoutError):
                error = place.end.future().exception(timeout=FAREWELL_S)
            return self._lost(place, error)

    def _gone(self, place: Place, error: BaseException) -> list[Answered | Died]:
        """Take what a worker of this machine had still said before it died, then start another."""
        found: list[Answered | Died] = []
        if place.line is None:  # before it said a word: the next may well do the same
            self._born_dead(place, cause_of(error))
            return []
        with contextlib.suppress(EOFError, OSError):
            while place.line.poll():
                found.append(Answered(place, place.line.recv()))
        return [*found, *self._lost(place, error)]

    def _lost(self, place: Place, error: BaseException | None) -> list[Answered | Died]:
        self._part(place)
        died = Died(place, cause_of(error) if error is not None else "its process ended")
        marked = self.marker(place)
        self._launch(place)
        self._markers[place.number] = marked  # what it was busy with is asked for next
        return [died]

    def _born_dead(self, place: Place, cause: str) -> None:
        self._stillborn += 1
        if any(member.up for member in self.members):  # the others go on, and there may be room for it later
            log.warning("worker %d cannot be started, it is tried again: %s", place.number, cause)
        elif self._stillborn >= STILLBORN:
            raise EngineError(f"engine: the Ray workers cannot start: {cause}")
        self._part(place)
        self._launch(place)


class _Bell:
    """Wakes a driver that waits, from any thread; nobody writes to it once it is closed."""

    def __init__(self) -> None:
        self.heard, self._ring = os.pipe()
        os.set_blocking(self._ring, False)
        self._lock = threading.Lock()
        self._closed = False

    def ring(self) -> None:
        """Wake who listens at `heard`."""
        # Ray's threads call this even after the end, when the number of the descriptor may be another file's.
        with self._lock, contextlib.suppress(BlockingIOError):  # full, so somebody is woken anyway
            if not self._closed:
                os.write(self._ring, b"!")

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self._closed = True
            os.close(self.heard)
            os.close(self._ring)


def _end(place: Place) -> None:
    """End a process of this machine: Ray asks it to go, which one that is stopped or hangs does not hear."""
    if place.process is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(place.process, signal.SIGKILL)


def _hang_up(place: Place) -> None:
    if place.line is not None:
        place.line.close()
        place.line = None
    if place.process is not None:
        os.close(place.process)
        place.process = None


def _place(member: Member) -> Place:
    assert isinstance(member, Place)
    return member


def _with_states(job: Job, states: States) -> Job:
    return replace(job, states=read_states(states.folder, [str(slip) for slip in job.states]))
