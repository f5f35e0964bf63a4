"""RayGrid: virtual clients on resident Ray workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedsim.engine.base import BlockApp, BlockGrid
from fedsim.engine.crew import RayCrew
from fedsim.engine.dispatch import Dispatcher
from fedsim.engine.states import States
from fedsim.engine.task import Task
from fedsim.engine.usage import Usage

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings


class RayGrid(BlockGrid):
    """Answers on Ray workers; a context manager that ends the Ray it started.

    Args:
        app: Answers for the clients; travels to each machine once.
        settings: Number of workers, threads, share of a GPU, memory, and which Ray.
        states: Where clients' states are kept; closed with the grid.

    Raises:
        EngineError: No GPU where one was asked for, or Ray or the workers cannot start.
    """

    def __init__(self, app: BlockApp, settings: EngineSettings, states: States | None = None) -> None:
        super().__init__(app, states)
        if settings.workers is not None and settings.workers > app.num_clients:  # the others would wait for ever
            settings = settings.model_copy(update={"workers": app.num_clients})
        try:
            self._crew = RayCrew(app, settings, self.states)
        except BaseException:
            self.states.close()
            raise
        self._dispatcher = Dispatcher(app, self._crew, self.states)

    @property
    def num_workers(self) -> int:
        """Number of resident workers."""
        return len(self._crew.members)

    def change(self, app: BlockApp, states: States | None = None) -> None:
        """Go on with other clients on the same workers, which take seconds to start.

        Args:
            app: Answers for the clients from now on.
            states: Where their states are kept; those of the clients before are closed.
        """
        self._dispatcher.close()
        self.states.close()
        super().__init__(app, states)
        self._crew.change(app, self.states)
        self._dispatcher = Dispatcher(app, self._crew, self.states)

    def start(self, task: Task) -> None:
        """Cut a task into pieces and give every worker something to do."""
        self._dispatcher.add(task, self.slips_for)

    def finish(self, tasks: Sequence[Task], *, wait: bool) -> None:
        """Bring tasks to their end, or only take note of what has arrived where `wait` is false.

        Raises:
            EngineError: Workers cannot be started any more.
        """
        self._dispatcher.run(tasks, wait=wait)

    def usage(self) -> Usage:
        """Return where the time went since the grid was opened."""
        return self._dispatcher.used

    def close(self) -> None:
        """End the workers, and Ray if this grid started it."""
        self._dispatcher.close()
        self._crew.close()
        super().close()
