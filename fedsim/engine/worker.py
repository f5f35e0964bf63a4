"""The Ray actor of a place in the crew: resident model and data, one piece of a task after the other."""

from __future__ import annotations

import mmap
import os
import platform
import queue
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Client
from pathlib import Path
from typing import cast

import numpy as np
import ray
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedsim.engine import flower
from fedsim.engine.board import Reader, readable
from fedsim.engine.cluster import keep_to
from fedsim.engine.desk import IDLE, WorkerDesk
from fedsim.engine.jobs import Done, Job
from fedsim.engine.states import State, read_states, write_states
from fedsim.engine.task import BlockApp


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself.

    Attributes:
        pid: Its process.
        node: Its machine: its address, and Ray's name of the node.
        near: Whether it shares memory and disk with whoever asked.
    """

    pid: int
    node: str
    near: bool


class Worker:
    """Lives in one process and answers for the clients it is given.

    Args:
        app: Answers for the clients; its arrays lie in Ray's shared memory.
        threads: Threads of linear algebra.
        share: Of a GPU; 0 trains on the CPU.
    """

    def __init__(self, app: BlockApp, threads: int, share: float) -> None:
        keep_to(threads, share)
        flower.set_identity()
        self._app = app
        self._reader = Reader()
        self._marker: NDArray[np.int32] | None = None

    def ready(self, paths: Sequence[str], token: str) -> Hello:
        """Answer once the process is up."""
        name = f"{platform.node()} {ray.get_runtime_context().get_node_id()[:8]}"
        return Hello(os.getpid(), name, readable(paths, token))

    def serve(self, address: str, number: int, life: int, markers: str, folder: str) -> None:
        """Do the jobs that come through a socket until None comes; should it be closed, the process ends.

        Args:
            address: The socket.
            number: The place this worker has.
            life: How many had it before.
            markers: File of [places, 2] whole numbers, in which this worker says which rows it is busy with.
            folder: Where clients' states are.
        """
        with Path(markers).open("r+b") as file:
            shown = mmap.mmap(file.fileno(), 0)
        self._marker = np.frombuffer(shown, np.int32).reshape(-1, 2)[number]
        self._marker[:] = IDLE
        line = Client(address, "AF_UNIX")
        line.send((number, life))
        jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()

        # A thread of its own empties the socket, so that driver and worker never wait for each other to read; and
        # it hears that the driver is gone while clients are trained.
        def listen() -> None:
            try:
                job = line.recv()
                while job is not None:
                    jobs.put(job)
                    job = line.recv()
                jobs.put(None)
            except (EOFError, OSError):
                os._exit(0)

        threading.Thread(target=listen, daemon=True).start()
        while (job := jobs.get()) is not None:
            line.send(self._done(job, None, Path(folder)))
        line.close()

    def take(self, app: BlockApp) -> None:
        """Answer with another application from now on."""
        self._app = app

    def run(self, job: Job, content: RecordDict) -> Done:
        """Do one job that came through Ray, from another machine."""
        return self._done(job, content, None)

    def _done(self, job: Job, content: RecordDict | None, folder: Path | None) -> Done:
        try:
            return self._do(job, content, folder)
        except Exception as error:  # the driver says it to whoever runs this
            traceback.print_exc()
            return Done(job.number, None, error=f"{type(error).__name__}: {error}")
        finally:
            if self._marker is not None:
                self._marker[:] = IDLE

    def _do(self, job: Job, content: RecordDict | None, folder: Path | None) -> Done:
        began = time.perf_counter()
        if content is None:
            assert job.request is not None, "a job without a request comes with its content"
            content = self._reader.request(job.request)
        states: Sequence[State] = [{} for _ in job.places]
        if job.states:
            states = read_states(folder, cast(Sequence[str], job.states)) if folder else job.states  # type: ignore[assignment]
        read = time.perf_counter()
        desk = WorkerDesk(self._reader, job.request, job.places, self._marker)
        block, kept = self._app.run(job.kind, content, job.units, states, desk)
        ran = time.perf_counter()
        done = Done(job.number, desk.signed(block), busy_s=ran - read)
        if job.file is not None:
            done = replace(done, kept=write_states(folder, job.file, kept) if folder else kept)
        return replace(done, transfer_s=read - began + time.perf_counter() - ran)
