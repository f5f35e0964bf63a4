"""Small runs that are tracked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from clients.app import LocalApp
from fedsim.engine.local import LocalGrid
from fedsim.engine.states import States
from fedsim.federation import Federation
from fedsim.lock import RunLock
from fedsim.resume import Saved, states_folder
from fedsim.rounds import Callback, Round
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, conduct

TABLE: dict[str, Any] = {
    "name": "small",
    "rounds": 5,
    "seed": 3,
    "data": {"name": "digits", "limit": 300},
    "partition": {"name": "dirichlet", "num_clients": 6, "alpha": 0.5},
    "model": {"name": "logistic"},
    "client": {"batch_size": 16},
    "strategy": {"name": "adafed"},
    "server": {"clients_per_round": 4},
    "engine": {"backend": "local", "checkpoint_every": 2},
    "evaluation": {"every": 2, "metrics": ["class_accuracy"]},
}


def scenario_of(*sinks: Any, tags: dict[str, str] | None = None, **changes: Any) -> Scenario:
    return Scenario.of({**TABLE, **changes, "tracking": {"sinks": list(sinks), "tags": tags or {}}})


def run(scenario: Scenario, folder: Path, callbacks: Sequence[Callback] = (), *, resume: bool = False) -> Path:
    """A run, or one that is taken up where its checkpoint left it."""
    federation = _federation()
    saved = Saved.read(folder) if resume else None
    with LocalGrid(LocalApp(scenario, federation), states=States(states_folder(folder))) as grid:
        if not resume:
            conduct(scenario, federation, grid, folder, callbacks=callbacks)
        else:
            with RunLock(folder) as lock:
                conduct(scenario, federation, grid, folder, callbacks=callbacks, lock=lock, saved=saved)
    return folder


@cache
def _federation() -> Federation:
    return build_federation(Scenario.of(TABLE))


def stop_after(number: int) -> Callback:
    """Ctrl-C at the end of a round, before its checkpoint."""

    def stop(finished: Round) -> None:
        if finished.number == number:
            raise KeyboardInterrupt

    return stop


def log_of(folder: Path) -> list[str]:
    """The lines of a run's log that are about tracking."""
    return [line for line in (folder / "log.txt").read_text().splitlines() if " tracking: " in line]
