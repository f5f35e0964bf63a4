"""The crew on Ray: workers on every machine of a cluster, started again when they die.

Ray places the processes, counts GPUs and says when one is gone. A worker on the driver's machine is then spoken to
through a socket (0.3 ms there and back where a Ray call takes 4) and boards; one elsewhere through Ray, which
brings the weights once to each machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError

from fedsim.engine.board import PAGE, Board, Probe
from fedsim.engine.desk import IDLE
from fedsim.engine.jobs import Answered, Died, Done, Job, Member
from fedsim.engine.local import check_device
from fedsim.engine.states import States, read_states, write_states
from fedsim.engine.task import BlockApp, Task
from fedsim.engine.worker import Hello, Worker
from fedsim.errors import EngineError

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings

# glibc gives large freed blocks back to the kernel at every step unless told not to.
WORKER_ENV = {
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}

START_S = 300.0
"""Seconds that a worker may take to import PyTorch and answer."""

STILLBORN = 3
"""Workers in a row that may die before they are ready."""

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
        end: Ray's promise that the worker has left its socket.
        since: When this life began.
        hello: What the worker says of itself.
        jobs: What it was sent through Ray.
    """

    actor: Any = None
    life: int = 0
    line: Connection | None = None
    end: Any = None
    since: float = 0.0
    hello: Hello | None = None
    jobs: dict[int, Job] = field(default_factory=dict)


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
        self._own_ray = not ray.is_initialized()
        self._stored: tuple[Task, Any] | None = None
        self._stillborn = 0
        self._inbox: deque[tuple[str, Place, int, Any]] = deque()
        if self._own_ray:
            _start_ray(settings)
        self.members: list[Member] = []
        self._exits = contextlib.ExitStack()
        try:
            num_workers = _num_workers(settings)
            self._open(num_workers)
            self._shared = ray.put(app)
            self._actor = _actor_class(settings)
            for number in range(num_workers):
                place = Place(number)
                self.members.append(place)
                self._launch(place)
            while not all(member.up for member in self.members):
                self.events(START_S)
        except RayError as error:
            self.close()
            raise EngineError(f"engine: the Ray workers cannot start: {cause_of(error)}") from error
        except BaseException:
            self.close()
            raise

    def send(self, member: Member, job: Job, task: Task) -> None:
        """Send a job on its way."""
        place = _place(member)
        if place.line is not None:
            # One that is gone is noticed when it is listened to.
            with contextlib.suppress(OSError):
                place.line.send(job)
            return
        if self._stored is None or self._stored[0] is not task:
            self._stored = task, ray.put(task.content)
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
        for thing in wait([self._wake, self._listener, *lines], timeout):
            if thing is self._wake:
                os.read(self._wake, PAGE)
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
        places = [_place(member) for member in self.members]
        for place in places:
            place.up = False
            if place.line is not None:
                place.line.send(None)
                ray.get(place.end, timeout=START_S)
                place.line.close()
                place.line = None
        ray.get([place.actor.take.remote(self._shared) for place in places], timeout=START_S)
        for place in places:
            place.since = time.monotonic()
            assert place.hello is not None
            self._greet(place, place.hello)
        while not all(place.up for place in places):
            self.events(START_S)

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for place in map(_place, self.members):
            self._part(place)
        self.members = []
        self._exits.close()
        if self._own_ray:
            ray.shutdown()

    def _open(self, num_workers: int) -> None:
        """Make what workers of this machine are spoken to through."""
        folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix=f"fedsim-{os.getpid()}-")))
        self._listener = self._exits.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(folder / "crew"))
        self._listener.listen(num_workers)
        self._address = str(folder / "crew")
        self._wake, self._ring = os.pipe()
        self._exits.callback(os.close, self._wake)
        self._exits.callback(os.close, self._ring)
        os.set_blocking(self._ring, False)
        self._probe = Probe([folder, self._states.folder])
        self._exits.callback(self._probe.close)
        self._board = Board(max(PAGE, 8 * num_workers), folder)
        self._exits.callback(self._board.close)
        note = self._board.post(b"", (num_workers, 2))
        self._markers = self._board.rows(note).view(np.int32)

    def _launch(self, place: Place) -> None:
        place.life += 1
        place.up, place.since = False, time.monotonic()
        place.jobs.clear()
        self._markers[place.number] = IDLE
        place.actor = self._actor.remote(
            self._shared, self._settings.threads_per_worker, self._settings.gpus_per_worker
        )
        self._watch(place.actor.ready.remote(self._probe.paths, self._probe.token), "ready", place)

    def _part(self, place: Place) -> None:
        """End whoever has a place."""
        if place.line is not None:
            place.line.close()
            place.line = None
        place.up = False
        if place.actor is not None and ray.is_initialized():
            with contextlib.suppress(Exception):
                ray.kill(place.actor)

    def _watch(self, call: Any, what: str, place: Place) -> None:
        """Ask to be woken when Ray has the result of a call."""
        life, ring, inbox = place.life, self._ring, self._inbox

        def told(future: Any) -> None:
            inbox.append((what, place, life, future))
            with contextlib.suppress(OSError):  # full, so somebody is woken anyway; or closed
                os.write(ring, b"!")

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
            return [] if error is None else self._lost(place, error)
        job = place.jobs.pop(int(what.removeprefix("job ")))
        if isinstance(error, RayActorError):
            return self._lost(place, error)
        if error is not None:
            return [Answered(place, Done(job.number, None, error=cause_of(error)))]
        done: Done = future.result()
        if job.file is not None and done.error is None:
            slips = write_states(self._states.folder, job.file, list(done.kept))  # type: ignore[arg-type]
            done = Done(done.number, done.block, slips, None, done.busy_s, done.transfer_s)
        return [Answered(place, done)]

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
        line = Connection(accepted.detach())
        number, life = line.recv()
        place = _place(self.members[number])
        if life != place.life:
            line.close()
            return
        place.line = line
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
            error: BaseException | None = None
            with contextlib.suppress(TimeoutError):
                error = place.end.future().exception(timeout=FAREWELL_S)
            return self._lost(place, error)

    def _lost(self, place: Place, error: BaseException | None) -> list[Answered | Died]:
        self._part(place)
        died = Died(place, cause_of(error) if error is not None else "its process ended")
        marked = self.marker(place)
        self._launch(place)
        self._markers[place.number] = marked  # what it was busy with is asked for next
        return [died]

    def _born_dead(self, place: Place, cause: str) -> None:
        self._stillborn += 1
        if self._stillborn >= STILLBORN:
            raise EngineError(f"engine: the Ray workers cannot start: {cause}")
        self._part(place)
        self._launch(place)


def _place(member: Member) -> Place:
    assert isinstance(member, Place)
    return member


def _with_states(job: Job, states: States) -> Job:
    return replace(job, states=read_states(states.folder, [str(slip) for slip in job.states]))


def _actor_class(settings: EngineSettings) -> Any:
    options: dict[str, Any] = {
        # One core each as Ray counts them: an actor that claims none may be packed with others.
        "num_cpus": 1,
        "num_gpus": settings.gpus_per_worker,
        "max_restarts": 0,
        "scheduling_strategy": "SPREAD",
    }
    if settings.memory_per_worker_mb is not None:
        options["memory"] = int(settings.memory_per_worker_mb * 2**20)
    if settings.address is not None:  # a Ray that others started has their environment
        options["runtime_env"] = {"env_vars": _worker_env(settings)}
    return ray.remote(**options)(Worker)


def _num_workers(settings: EngineSettings) -> int:
    cluster: Any = ray.cluster_resources  # untyped
    resources = cluster()
    if settings.gpus_per_worker == 0:
        room = int(resources.get("CPU", 0))
        wanted = settings.workers or max(1, room)
        if wanted > room:
            raise EngineError(f"engine.workers: the running Ray has {room} CPUs, got {wanted} workers")
        return wanted
    num_gpus = resources.get("GPU", 0)
    share = settings.gpus_per_worker
    # A share lies on one GPU: two of 0.4 leave a rest on each that is no use.
    room = int(num_gpus) * int(1 / share + 1e-9) if share < 1 else int(num_gpus / share + 1e-9)
    if (settings.workers is not None and settings.workers > room) or room == 0:
        raise EngineError(
            f"engine.workers: {num_gpus:g} GPU(s) have room for {room} workers of {share:g}, got "
            f"{settings.workers or 1}"
        )
    return settings.workers or room


def _worker_env(settings: EngineSettings) -> dict[str, str]:
    threads = str(settings.threads_per_worker)
    return {**WORKER_ENV, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def _start_ray(settings: EngineSettings) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is not None:
        try:
            ray.init(address=settings.address, **common)
        except Exception as error:
            raise EngineError(
                f"engine.address: no Ray cluster can be reached at {settings.address!r}: {cause_of(error)}; "
                "start one with `ray start --head`, or leave engine.address out"
            ) from error
        return
    check_device(settings)
    try:
        with _environment(_worker_env(settings)):
            ray.init(num_cpus=max(settings.workers or 1, os.cpu_count() or 1), include_dashboard=False, **common)
    except Exception as error:
        raise EngineError(
            f'engine: Ray cannot start: {cause_of(error)}; engine.backend = "local" runs without it'
        ) from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside the block; those the user set stay."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def cause_of(error: BaseException) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
