"""Clients that raise, answer nonsense or run out of memory: named by the whole stack, left out where allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedsim.engine import board
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, EngineError, RoundError
from tests.faults.apps import Fault, Faulty
from tests.faults.studies import Left, Study, culprits, same

Opened = Callable[[Any], Any]

NONSENSE = {
    "raise": "ValueError: its data are damaged",
    "nan": "its update is not finite",
    "inf": "its update is not finite",
    "negative": "its num-examples must be finite and not negative, got -5.0",
    "missing": "its num-examples must be finite and not negative, got nan",
}


@pytest.fixture(scope="module")
def two_workers(ray_cluster: None) -> Iterator[Any]:
    from fedsim.engine.grid import RayGrid
    from fedsim.settings import EngineSettings
    from tests.engine.fakes import FakeApp

    with RayGrid(FakeApp(), EngineSettings(workers=2)) as opened:
        yield opened


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Returns a grid for an application."""
    if request.param == "local":
        return LocalGrid
    grid = request.getfixturevalue("two_workers")

    def change(app: Any) -> Any:
        grid.change(app)
        return grid

    return change


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.of(rounds=3)


@pytest.fixture(scope="module")
def stateless() -> Study:
    return Study.of(strategy={"name": "fedavg"}, rounds=2)


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_named_and_left_out_where_that_is_allowed(
    kind: str, study: Study, undisturbed: Left, opened: Opened, tmp_path: Path, marks: Path
) -> None:
    victim = undisturbed.sampled(2)[3]
    fault = Fault(kind, marks, victim, round=2)
    with pytest.raises(ClientError) as caught:
        study.run(opened(Faulty(study.app(), fault)), tmp_path / "stopped")
    assert (caught.value.client, caught.value.server_round) == (victim, 2)
    said = NONSENSE[kind]
    assert said in caught.value.cause or (said.endswith("finite") and "finite" in caught.value.cause)
    assert len(pd.read_parquet(tmp_path / "stopped" / "rounds.parquet")) == 2  # rounds 0 and 1 are there

    left = study.run(opened(Faulty(study.app(), fault)), tmp_path / "went-on", max_failures=1)
    assert left.failed() == [(2, victim)]
    first = [table[table["round"] < 2] for table in (left.clients, undisturbed.clients)]
    pd.testing.assert_frame_equal(*first, check_exact=True)
    second = left.clients[(left.clients["round"] == 2) & left.clients["sampled"]].set_index("client")
    assert pd.isna(second["weight"][victim])
    assert second["weight"].drop(victim).notna().all()
    assert left.clients["test_loss"].notna().all()  # a model without a trace of it
    assert len(culprits(marks)) == 2


def test_an_answer_without_a_key_names_the_key(
    study: Study, undisturbed: Left, opened: Opened, tmp_path: Path, marks: Path
) -> None:
    grid = opened(Faulty(study.app(), Fault("no-examples", marks, undisturbed.sampled(1)[0], round=1)))
    with pytest.raises(ClientError, match="num-examples"):
        study.run(grid, tmp_path / "run")


@pytest.mark.slow
def test_an_update_of_another_shape_costs_nobody_else_his(
    study: Study, undisturbed: Left, two_workers: Any, tmp_path: Path, marks: Path
) -> None:
    victim = undisturbed.sampled(2)[0]
    two_workers.change(Faulty(study.app(), Fault("shape", marks, victim, round=2)))
    left = study.run(two_workers, tmp_path / "run", max_failures=4)
    failed = left.failed()
    assert (2, victim) in failed
    assert len(failed) < 5  # only those whose rows came in the same array
    left_over = left.clients[(left.clients["round"] == 2) & left.clients["sampled"] & ~left.clients["failed"]]
    assert left_over["weight"].notna().all()
    with pytest.raises(ClientError, match=r"an update must have shape \[\d+\], got \[3\]"):
        study.run(two_workers, tmp_path / "stopped")


@pytest.fixture(scope="module")
def stacked() -> Study:
    client = {"batch_size": 16, "lr": 0.05, "cohort": "stacked", "block_size": 8}
    return Study.of(strategy={"name": "fedavg"}, rounds=2, client=client)


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_where_clients_keep_nothing_the_server_finds_it(
    kind: str, stateless: Study, opened: Opened, tmp_path: Path, marks: Path
) -> None:
    """Clients that keep a state look at their own update first."""
    left = stateless.run(LocalGrid(stateless.app()), tmp_path / "undisturbed")
    victim = left.sampled(2)[1]
    grid = opened(Faulty(stateless.app(), Fault(kind, marks, victim, round=2)))
    with pytest.raises(ClientError, match=rf"client {victim}, round 2: .*finite"):
        stateless.run(grid, tmp_path / "stopped")
    assert stateless.run(grid, tmp_path / "went-on", max_failures=1).failed() == [(2, victim)]


class TestMemory:
    """A device whose memory suffices for few clients at once."""

    def test_blocks_are_halved_until_they_fit(
        self, stacked: Study, opened: Opened, tmp_path: Path, marks: Path
    ) -> None:
        expected = stacked.run(LocalGrid(stacked.app()), tmp_path / "expected")
        grid = opened(Faulty(stacked.app(), Fault("memory", marks, client=-1, room=2)))
        left = stacked.run(grid, tmp_path / "run")
        assert culprits(marks)
        assert left.failed() == []
        whole, halves = expected.clients.pop("block"), left.clients.pop("block")
        assert set(whole.dropna()) == {5.0}
        assert set(halves.dropna()) <= {1.0, 2.0}
        pd.testing.assert_frame_equal(left.clients, expected.clients, rtol=1e-3, atol=1e-4)

    def test_one_that_does_not_fit_alone_is_named(
        self, study: Study, undisturbed: Left, opened: Opened, tmp_path: Path, marks: Path
    ) -> None:
        victim = undisturbed.sampled(1)[1]
        grid = opened(Faulty(study.app(), Fault("memory", marks, victim, round=1)))
        with pytest.raises(ClientError, match=rf"client {victim}, round 1: OutOfMemoryError: CUDA out of memory"):
            study.run(grid, tmp_path / "run")


class TestFullFolders:
    """Shared memory has no room."""

    def test_disk_does_the_same(
        self, study: Study, undisturbed: Left, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        full, disk = tmp_path / "full", tmp_path / "disk"
        full.mkdir()
        disk.mkdir()
        crowd(monkeypatch, {full}, (full, disk), made)
        grid = opened(study.app())
        same(study.run(grid, tmp_path / "run"), undisturbed)
        assert {path.parent for path in made} == {disk}

    def test_no_room_at_all_is_one_message(
        self, study: Study, undisturbed: Left, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders = tmp_path / "shared", tmp_path / "disk"
        for folder in folders:
            folder.mkdir()
        grid = opened(study.app())
        with monkeypatch.context() as patch:
            crowd(patch, set(folders), folders, [])
            with pytest.raises(EngineError, match=r"there is no room for a request of \d+ bytes") as caught:
                study.run(grid, tmp_path / "run")
        assert "make room there" in str(caught.value)
        assert str(caught.value).count("has no room") == 2
        same(study.run(grid, tmp_path / "again"), undisturbed)  # once there is room, nothing is left of it


def crowd(monkeypatch: pytest.MonkeyPatch, full: set[Path], folders: tuple[Path, ...], made: list[Path]) -> None:
    """Make boards in these folders, some of which take nothing."""

    class Board(board.Board):
        def __init__(self, size: int, folder: Path) -> None:
            if folder in full:
                raise OSError(f"{folder} has no room for {size} bytes")
            super().__init__(size, folder)
            made.append(Path(self.path))

    monkeypatch.setattr(board, "FOLDERS", folders)
    monkeypatch.setattr(board, "Board", Board)


def test_everybody_failing_stops_a_run_that_allows_failures(
    study: Study, opened: Opened, tmp_path: Path, marks: Path
) -> None:
    grid = opened(Faulty(study.app(), Fault("memory", marks, client=-1, round=2)))
    with pytest.raises((ClientError, RoundError), match=r"round 2: .*every client failed"):
        study.run(grid, tmp_path / "run", max_failures=100)
