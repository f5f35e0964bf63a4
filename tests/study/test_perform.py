"""One run after the other on workers that stay."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsim.settings import EngineSettings
from fedsim.study import perform


class Grid:
    """As many workers as were asked for, but no more than clients, as RayGrid has them."""

    def __init__(self, app: Any, settings: EngineSettings) -> None:
        assert settings.workers is not None
        self.num_workers = min(settings.workers, app.num_clients)
        self.served = [app.num_clients]
        self.closed = False

    def change(self, app: Any, states: Any) -> None:
        assert not self.closed
        del states
        self.served.append(app.num_clients)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("runs", "served"),
    [
        ([(10, 4), (10, 4), (8, 4)], [[10, 10, 8]]),  # the workers stay
        ([(2, 4), (2, 4), (10, 4), (3, 4)], [[2, 2], [10, 3]]),  # two were enough for two clients
        ([(2, 2), (10, 2)], [[2, 10]]),  # no more were asked for
        ([(10, 4), (10, 3)], [[10], [10]]),  # asked for otherwise
    ],
)
def test_workers_stay_unless_others_are_wanted(
    runs: list[tuple[int, int]], served: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Grid] = []

    def opening(app: Any, settings: EngineSettings, states_folder: Path) -> Grid:
        assert all(grid.closed for grid in opened)
        opened.append(Grid(app, settings))
        return opened[-1]

    monkeypatch.setattr(perform, "open_grid", opening)
    together = perform.Together()
    for place, (num_clients, workers) in enumerate(runs):
        engine = EngineSettings(backend="ray", workers=workers)
        app: Any = SimpleNamespace(num_clients=num_clients, scenario=SimpleNamespace(engine=engine))
        folder = tmp_path / f"run{place}"
        (folder / "checkpoint" / "clients").mkdir(parents=True)
        with together._opened(app, folder) as grid:
            assert grid is opened[-1]
            assert not grid.closed
    together.close()
    assert [grid.served for grid in opened] == served
    assert all(grid.closed for grid in opened)
