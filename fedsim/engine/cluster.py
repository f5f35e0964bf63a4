"""Ray as the crew uses it: found or started, and how many workers there is room for."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
import torch
from ray.exceptions import RayError

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

MOST_WORDS = 300
"""Letters of what Ray says that are passed on."""

REACH_S = 10.0
"""Seconds in which a cluster's address must take a connection: Ray itself goes on trying for minutes."""


def actor_class(worker: type, settings: EngineSettings) -> Any:
    """Return a class as Ray is to start it."""
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
    return ray.remote(**options)(worker)


@contextmanager
def starting(close: Callable[[], None]) -> Iterator[None]:
    """Start workers inside the block; if that fails, `close` ends what there is.

    Raises:
        EngineError: Ray could not start them.
    """
    try:
        yield
    except RayError as error:
        close()
        raise EngineError(f"engine: the Ray workers cannot start: {cause_of(error)}") from error
    except BaseException:
        close()
        raise


def keep_to(threads: int, share: float) -> None:
    """Let this process, a worker, take what it was given and no more.

    Args:
        threads: Of linear algebra.
        share: Of a GPU; 0 trains on the CPU.
    """
    torch.set_num_threads(threads)
    if 0 < share < 1 and torch.cuda.is_available():
        # Ray counts shares and limits nothing: who wants too much should fail, not its neighbour.
        torch.cuda.set_per_process_memory_fraction(share)


def count_workers(settings: EngineSettings) -> int:
    """Return how many workers to start.

    Raises:
        EngineError: There is no room for as many as were asked for.
    """
    wants = {"CPU": 1.0, "GPU": settings.gpus_per_worker}
    if settings.memory_per_worker_mb is not None:
        wants["memory"] = settings.memory_per_worker_mb * 2**20
    wants = {name: each for name, each in wants.items() if each > 0}
    nodes: Any = ray.nodes  # untyped
    alive = [node["Resources"] for node in nodes() if node["Alive"]]
    room = sum(min(_fits(node.get(name, 0.0), each) for name, each in wants.items()) for node in alive)
    wanted = settings.workers or max(1, room)
    if wanted > room:
        have = ", ".join(f"{sum(node.get(name, 0.0) for node in alive):g} {name}" for name in wants)
        each = ", ".join(f"{amount:g} {name}" for name, amount in wants.items())
        raise EngineError(
            f"engine.workers: the running Ray has room for {room} workers of {each} each, on {len(alive)} nodes "
            f"with {have} in all, got {wanted} workers"
        )
    return wanted


def _fits(amount: float, each: float) -> int:
    """Return how many shares there are; one of a GPU lies on one GPU: two of 0.4 leave a rest on each."""
    return int(amount) * int(1 / each + 1e-9) if each < 1 else int(amount / each + 1e-9)


def _worker_env(settings: EngineSettings) -> dict[str, str]:
    threads = str(settings.threads_per_worker)
    return {**WORKER_ENV, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def start_ray(settings: EngineSettings) -> None:
    """Join the cluster that is named, or start a Ray of this machine.

    Raises:
        EngineError: There is no such cluster, no GPU where one was asked for, or Ray cannot start.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is not None:
        try:
            _knock(settings.address)
            with _signals_kept():
                ray.init(address=settings.address, **common)
        except Exception as error:
            raise EngineError(
                f"engine.address: no Ray cluster can be reached at {settings.address!r}: {cause_of(error)}; "
                "start one with `ray start --head`, or leave engine.address out"
            ) from error
        return
    num_cpus = max(settings.workers or 1, os.cpu_count() or 1)
    try:
        with _environment(_worker_env(settings)), _signals_kept():
            # "local": without it Ray joins whatever cluster somebody has on this machine.
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **common)
    except Exception as error:
        raise EngineError(
            f'engine: Ray cannot start: {cause_of(error)}; engine.backend = "local" runs without it'
        ) from error


def _knock(address: str) -> None:
    """Find out whether anybody listens at "host:port".

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit():  # "auto" is looked up by Ray
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own on SIGTERM that ends the process; who has one keeps it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # it was set from Python
            with contextlib.suppress(ValueError):  # not the main thread: Ray has set none
                signal.signal(signal.SIGTERM, before)


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
    """Return the last line that says something; Ray's are cut where they begin to guess."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    said = said.partition(" Some common causes include")[0]
    return said if len(said) <= MOST_WORDS else f"{said[:MOST_WORDS]}..."
