"""Engines: Flower grids whose nodes are virtual clients. `open_grid` picks the one a scenario asks for."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsim.engine.base import BlockApp, BlockGrid
    from fedsim.settings import EngineSettings


def open_grid(app: BlockApp, settings: EngineSettings, states_folder: Path | None = None) -> BlockGrid:
    """Return the grid of `engine.backend`; use it as a context manager.

    Args:
        app: Answers for the clients.
        settings: Where clients are trained.
        states_folder: Where what clients keep between rounds is written; None forgets it at the end.

    Raises:
        EngineError: No GPU where one was asked for, or Ray cannot start.
    """
    from fedsim.engine.states import States

    if settings.backend == "local":
        from fedsim.engine.local import LocalGrid, check_device

        check_device(settings)
        return LocalGrid(app, settings.threads_per_worker, States(states_folder))
    from fedsim.engine.grid import RayGrid  # Ray takes a second to import

    places = [] if states_folder is None else [states_folder, *states_folder.parents]
    made = [place for place in places if not place.exists()]
    try:
        return RayGrid(app, settings, States(states_folder))
    except BaseException:
        for place in made:  # a run that never began leaves no folder
            with contextlib.suppress(OSError):  # not empty: it is somebody else's too
                place.rmdir()
        raise
