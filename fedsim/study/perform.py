"""One run of a study, begun or taken up again, in whatever process it is given to."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import LocalApp
from fedsim.engine import open_grid
from fedsim.engine.base import BlockGrid
from fedsim.engine.states import States
from fedsim.errors import DataError, FedSimError
from fedsim.interrupt import heed
from fedsim.lock import RunLock
from fedsim.resume import Saved, states_folder
from fedsim.rounds import Round
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, conduct
from fedsim.settings import EngineSettings
from fedsim.study.folder import is_finished, note_failure

NEWS_S = 0.5
"""Least seconds between two things said about a run."""

Table = Mapping[str, Any]

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Order:
    """A run to be made.

    Attributes:
        name: What it is called, for people.
        table: The scenario.
        folder: Where it goes.
    """

    name: str
    table: Table
    folder: str


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        status: "finished" or "failed".
        error: Why it failed.
    """

    status: str
    error: str | None = None


def perform(order: Order, tell: Callable[[int], None]) -> Outcome:
    """Carry out a run in this process; `tell` hears now and then which round it has finished.

    What goes wrong with the run is its outcome, not an exception.
    """

    def in_here(app: LocalApp, folder: Path) -> BlockGrid:
        local = app.scenario.engine.model_copy(update={"backend": "local"})
        return open_grid(app, local, states_folder(folder))

    return _carried_out(order, tell, in_here)


class Together:
    """Carries out one run after the other, the clients of each on all workers, which stay."""

    def __init__(self) -> None:
        self._grid: Any = None
        self._settings: EngineSettings | None = None

    def perform(self, order: Order, tell: Callable[[int], None]) -> Outcome:
        """Carry out a run; see `perform`."""
        return _carried_out(order, tell, self._opened)

    def close(self) -> None:
        """End the workers."""
        if self._grid is not None:
            self._grid.close()
            self._grid = None

    def _opened(self, app: LocalApp, folder: Path) -> BlockGrid:
        settings = app.scenario.engine
        # A run of few clients has no more workers than those, whatever was asked for.
        enough = min(settings.workers or 0, app.num_clients)
        if self._grid is not None and self._settings == settings and self._grid.num_workers >= enough:
            self._grid.change(app, States(states_folder(folder)))
        else:
            self.close()
            self._grid = open_grid(app, settings, states_folder(folder))
            self._settings = settings
        return _Lent(self._grid)  # type: ignore[return-value]


class _Lent:
    """A grid that outlives the run it is lent to."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def __enter__(self) -> Any:
        return self._grid

    def __exit__(self, *_: object) -> None:
        return None


def _carried_out(
    order: Order, tell: Callable[[int], None], opened: Callable[[LocalApp, Path], BlockGrid]
) -> Outcome:
    folder, said = Path(order.folder), [0.0]

    def news(finished: Round) -> None:
        if time.monotonic() - said[0] > NEWS_S:
            said[0] = time.monotonic()
            tell(finished.number)

    try:
        with RunLock(folder) as lock:
            if is_finished(folder):
                return Outcome("finished")
            try:
                scenario, saved = _where_it_stands(order, folder)
                federation = build_federation(scenario)
                if saved is not None:
                    saved.refuse_other_data(scenario, federation)
                app = LocalApp(scenario, federation, "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu")
                app.check()
                with opened(app, folder) as grid:
                    conduct(
                        app.scenario,
                        federation,
                        grid,
                        folder,
                        callbacks=[news, heed],
                        lock=lock,
                        saved=saved,
                        report=False,
                    )
            except Exception as error:  # also a mistake in a rule: the other methods are not to suffer from it
                if not isinstance(error, FedSimError):
                    log.exception("%s", order.name)
                why = str(error) if isinstance(error, FedSimError) else f"{type(error).__name__}: {error}"
                note_failure(folder, why)
                return Outcome("failed", why)
    except FedSimError as error:  # somebody else writes the folder
        return Outcome("failed", str(error))
    return Outcome("finished")


def _where_it_stands(order: Order, folder: Path) -> tuple[Scenario, Saved | None]:
    """Return the scenario of a run and the checkpoint it goes on from, if it has one that can be used."""
    scenario = Scenario.of(order.table, order.name)
    try:
        saved = Saved.read(folder)
    except DataError:
        saved = None  # damaged: the run is this study's own, and begins again
    if saved is None or saved.kept.clients is None:
        for entry in folder.iterdir():
            if entry.name != "checkpoint":  # the lock is in there
                entry.unlink() if entry.is_file() else shutil.rmtree(entry)
        return scenario, None
    # As it was resolved when it began: what was chosen by the machine then stays as it was.
    return Scenario.load(folder / "scenario.toml"), saved
