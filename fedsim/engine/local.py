"""LocalGrid: every client in this process, no Ray. The reference that other engines must equal bit by bit."""

from __future__ import annotations

import os
import platform
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from fedsim.engine.base import BlockApp, BlockGrid
from fedsim.engine.board import Boards
from fedsim.engine.desk import LocalDesk
from fedsim.engine.states import States, read_states, write_states
from fedsim.engine.task import Task
from fedsim.engine.usage import Usage, Worked
from fedsim.errors import EngineError, FedSimError

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings


def check_device(settings: EngineSettings) -> int:
    """Return the number of GPUs, 0 when none was asked for.

    Raises:
        EngineError: One was asked for and there is none.
    """
    if settings.gpus_per_worker == 0:
        return 0
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == 0:
        raise EngineError(
            f"engine.gpus_per_worker: no CUDA device was found, got {settings.gpus_per_worker:g}; "
            "set it to 0 to train on the CPU"
        )
    return found


class LocalGrid(BlockGrid):
    """Answers in this process, when somebody asks for the answers.

    A timeout cannot interrupt this process and is not looked at.

    Args:
        app: Answers for the clients.
        threads: Threads of linear algebra while clients train, as many as a Ray worker has.
        states: Where clients' states are kept; closed with the grid.
    """

    def __init__(self, app: BlockApp, threads: int = 1, states: States | None = None) -> None:
        super().__init__(app, states)
        self._threads = threads
        self._queue: deque[Task] = deque()
        self._boards = Boards()
        self._used = Usage(workers=[Worked("this process", platform.node(), os.getpid())])

    def start(self, task: Task) -> None:
        """Put a task in the queue."""
        self._queue.append(task)

    def finish(self, tasks: Sequence[Task], *, wait: bool) -> None:
        """Answer in the order of the queue until these tasks are done, whether anybody would wait or not."""
        del wait
        pending = deque(tasks)
        while pending:
            if pending[0].done:
                pending.popleft()
                continue
            task = self._queue.popleft()
            began = time.perf_counter()
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                self._answer(task)
            except FedSimError as error:
                task.error = error
            except Exception as error:
                task.error = EngineError(f"engine: answering failed: {type(error).__name__}: {error}")
                task.error.__cause__ = error
            finally:
                torch.set_num_threads(before)
                task.done = True
            self._used.workers[0].busy_s += time.perf_counter() - began
            self._used.workers[0].answered += len(task.clients)

    def usage(self) -> Usage:
        """Return where the time went since the grid was opened."""
        return self._used

    def close(self) -> None:
        """Remove what lies in shared memory."""
        self._boards.close()
        super().close()

    def _answer(self, task: Task) -> None:
        if not task.clients:
            return
        units = self._app.units(task.kind, task.clients)
        members = [client for unit in units for client in unit]
        places = [task.place_of[client] for client in members]
        slips = self.slips_for(task)
        states = read_states(self.states.folder, [slips[p] for p in places]) if slips else [{} for _ in members]
        desk = LocalDesk(self._boards, places)
        try:
            block, kept = self._app.run(task.kind, task.content, units, states, desk)
            task.merged = type(block).merged([(places, block)], len(members), desk.updates)
        finally:
            desk.leave(task.merged)
        if task.keeps:
            written = write_states(self.states.folder, self.states.new_file(), kept)
            task.kept = dict(zip(members, written, strict=True))
