"""RayGrid: virtual clients on resident Ray workers.

Weights go to the object store once a round; each worker gets one block of clients per call and sends one stacked
array back. What a client keeps between rounds stays in the object store, and only its reference here.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from flwr.app import RecordDict
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from fedsim.engine.base import BlockApp, BlockGrid, State
from fedsim.engine.board import Board, Boards, Note, probe
from fedsim.engine.local import check_device
from fedsim.engine.schedule import balance
from fedsim.engine.worker import Worker
from fedsim.errors import EngineError
from fedsim.wire import Block, num_weights

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
"""Seconds that workers may take to import PyTorch and answer."""


class RayGrid(BlockGrid):
    """Answers on Ray workers; a context manager that ends the Ray it started.

    Args:
        app: Answers for the clients; travels to the workers once.
        settings: Number of workers, threads and share of a GPU.

    Raises:
        EngineError: No GPU where one was asked for, or Ray cannot start.
    """

    def __init__(self, app: BlockApp, settings: EngineSettings) -> None:
        super().__init__(app)
        self._workers: list[Any] = []
        self._states: dict[int, Any] = {}
        self._boards = Boards()
        self._local: list[bool] = []
        num_workers = _num_workers(settings)
        self._own_ray = not ray.is_initialized()
        if self._own_ray:
            _start_ray(num_workers, settings)
        self._check_room(num_workers)
        try:
            shared = ray.put(app)
            # One core each as Ray counts them: an actor that claims none may be packed with others.
            actor: Any = ray.remote(num_cpus=1, num_gpus=settings.gpus_per_worker, max_restarts=0)(Worker)
            self._workers = [actor.remote(shared, settings.threads_per_worker) for _ in range(num_workers)]
            with probe() as (path, token):
                calls = [worker.ready.remote(path, token) for worker in self._workers]
                self._local = ray.get(calls, timeout=START_S)
        except RayError as error:
            self.close()
            raise EngineError(f"engine: the Ray workers cannot start: {_cause(error)}") from error

    @property
    def num_workers(self) -> int:
        """Number of resident workers."""
        return len(self._workers)

    def answer(
        self, kind: str, content: RecordDict, clients: Sequence[int], timeout: float | None
    ) -> Mapping[int, tuple[Block, int] | str]:
        """Send one block to each worker and wait for all."""
        if not clients:
            return {}
        place_of = {client: place for place, client in enumerate(clients)}
        request = _Request(
            content,
            (len(clients), num_weights(content) if kind.partition(".")[0] == "train" else 0),
            self._boards,
            self._local,
        )
        units = self._app.units(kind, clients)
        costs = [sum(self._app.cost(kind, client) for client in unit) for unit in units]
        calls = []
        for number, share in enumerate(balance(costs, len(self._workers))):
            if share:
                chosen = [units[place] for place in share]
                members = [client for unit in chosen for client in unit]
                places = [place_of[client] for client in members]
                calls.append(
                    (members, places, self._call(number, kind, request.for_worker(number), chosen, places))
                )
        deadline = None if timeout is None else time.monotonic() + timeout
        results: dict[int, tuple[Block, int] | str] = {}
        parts: list[tuple[list[int], Block]] = []
        states: dict[int, Any] = {}
        for members, places, futures in calls:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            block = self._collect(members, futures[0], left)
            if block is None:
                results |= dict.fromkeys(members, f"no answer within {timeout:g} s")
                continue
            parts.append((places, block))
            states.update(zip(members, futures[1:], strict=False))
        self._states.update(states)  # only now: a worker's crash leaves every client as it was
        # A worker that is late may still write: its board is not used again.
        whole = request.merged(parts, late=bool(results))
        for places, block in parts:
            results |= {client: (whole, place) for client, place in zip(block.clients, places, strict=True)}
        return results

    def client_states(self) -> dict[int, State]:
        """Return what every client keeps between rounds, fetched from the object store."""
        return {client: ray.get(reference) for client, reference in sorted(self._states.items())}

    def close(self) -> None:
        """End the workers, and Ray if this grid started it."""
        self._boards.close()
        if self._own_ray:
            ray.shutdown()
        else:
            for worker in self._workers:
                ray.kill(worker)
        self._workers = []

    def _check_room(self, num_workers: int) -> None:
        cluster: Any = ray.cluster_resources  # untyped
        room = int(cluster().get("CPU", 0))
        if num_workers > room:
            self.close()
            raise EngineError(f"engine.workers: the running Ray has {room} CPUs, got {num_workers} workers")

    def _call(self, number: int, kind: str, request: Any, units: list[list[int]], places: list[int]) -> list[Any]:
        worker = self._workers[number]
        if not (self.keeps(kind) or self._app.reads_state(kind)):
            return [worker.run.remote(kind, request, units, places)]
        states = [self._states.get(client, {}) for unit in units for client in unit]
        if not self.keeps(kind):
            return [worker.read.remote(kind, request, units, places, *states)]
        call = worker.run.options(num_returns=1 + len(places))
        return list(call.remote(kind, request, units, places, *states))

    def _collect(self, members: list[int], future: Any, timeout: float | None) -> Block | None:
        """Return a worker's block, or None when it did not come in time."""
        try:
            block: Block = ray.get(future, timeout=timeout)
        except GetTimeoutError:
            return None
        except RayTaskError as error:
            raise EngineError(f"a worker failed on clients {_some(members)}: {_cause(error)}") from error
        except RayActorError as error:
            raise EngineError(
                f"a worker died while it had clients {_some(members)}: {_cause(error)}; "
                "if memory ran out, use fewer engine.workers"
            ) from error
        return block


class _Request:
    """What the workers are asked in one call: on a board for those of this machine, else in the object store."""

    def __init__(self, content: RecordDict, shape: tuple[int, int], boards: Boards, local: Sequence[bool]) -> None:
        self._content, self._boards, self._local, self._rows = content, boards, local, shape[0]
        self._note: Note | None = None
        self._board: Board | None = None
        self._stored: Any = None
        if any(local):
            packed = pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)
            self._board = boards.take(len(packed), shape)
            if self._board is not None:
                self._note = self._board.post(packed, shape)

    def for_worker(self, number: int) -> Any:
        """Return what a worker is sent."""
        if self._note is not None and self._local[number]:
            return self._note
        if self._stored is None:
            self._stored = ray.put(self._content)
        return self._stored

    def merged(self, parts: Sequence[tuple[list[int], Block]], *, late: bool) -> Block:
        """Return one block for all answers, its updates on the board where there is one."""
        rows = self._board.rows(self._note) if self._board is not None and self._note is not None else None
        kind = type(parts[0][1]) if parts else Block
        block = kind.merged(parts, self._rows, rows)
        if self._board is not None:
            if late:
                self._board.close()
            else:
                self._boards.give_back(self._board, rows if block.updates is rows else None)
        return block


def _num_workers(settings: EngineSettings) -> int:
    num_gpus = check_device(settings)
    if num_gpus == 0:
        return settings.workers or os.cpu_count() or 1
    room = int(num_gpus / settings.gpus_per_worker + 1e-9)
    wanted = settings.workers or max(1, room)
    if wanted > room:
        raise EngineError(
            f"engine.workers: {num_gpus} GPU(s) have room for {room} workers of "
            f"{settings.gpus_per_worker:g}, got {wanted}"
        )
    return wanted


def _start_ray(num_workers: int, settings: EngineSettings) -> None:
    threads = str(settings.threads_per_worker)
    try:
        with _environment({**WORKER_ENV, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}):
            ray.init(
                num_cpus=max(num_workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        raise EngineError(
            f'engine: Ray cannot start: {_cause(error)}; engine.backend = "local" runs without it'
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


def _cause(error: BaseException) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _some(members: Sequence[int]) -> str:
    shown = ", ".join(str(client) for client in members[:8])
    return shown if len(members) <= 8 else f"{shown}, ... ({len(members)} in all)"
