"""What sinks are told, whatever happens to the run; what happens to the run, whatever a sink does: nothing."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import run_sim
from fedsim import tracking
from fedsim.errors import ScenarioError
from fedsim.resume import state_file
from fedsim.rounds import Round
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation
from fedsim.tracking import Tracking
from tests.sinks import own
from tests.sinks.readers import expected, fairness_of
from tests.sinks.runs import TABLE, log_of, run, scenario_of, stop_after

LINES, TROUBLE = "tests.sinks.own:Lines", "tests.sinks.own:Trouble"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def rounds_of(folder: Path) -> list[int]:
    return [line["round"] for line in lines_of(folder) if "round" in line]


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    own.HOLD.clear()
    yield
    own.HOLD.set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return run(scenario_of(LINES, tags={"seed": "three"}), tmp_path_factory.mktemp("told") / "run")


class TestWhatASinkIsTold:
    def test_every_number_of_every_round(self, folder: Path) -> None:
        held: dict[str, dict[int, list[float]]] = {}
        for line in lines_of(folder)[1:-1]:
            for name, value in line["numbers"].items():
                held.setdefault(name, {})[line["round"]] = [value]
        assert held == expected(folder)
        assert "pooled_class_accuracy/9" in held

    def test_every_client_of_every_evaluation(self, folder: Path) -> None:
        table = pd.read_parquet(folder / "clients.parquet")
        for line in lines_of(folder)[1:-1]:
            rows = table[table["round"] == line["round"]]
            known = {name: rows[name].dropna().tolist() for name in ("test_accuracy", "test_loss")}
            assert line["clients"] == (known if line["round"] in (0, 2, 4, 5) else {})

    def test_the_run_and_its_end(self, folder: Path) -> None:
        first, last = lines_of(folder)[0], lines_of(folder)[-1]
        tags = {"scenario": "small", "method": "adafed", "partition": "dirichlet", "seed": "three"}
        assert first["start"] == {"name": "run", "tags": tags, "resumed": "", "reached": -1}
        assert first["scenario"] == {
            k: v for k, v in tomllib.loads((folder / "scenario.toml").read_text()).items() if k != "tracking"
        }
        assert last["status"] == "finished"
        assert {k: v for k, v in last["summary"].items() if k.startswith("fairness/")} == fairness_of(folder)
        pooled = json.loads((folder / "summary.json").read_text())["pooled"]
        assert last["summary"]["pooled/class_accuracy/3"] == pooled["class_accuracy"][3]


class TestGoingOn:
    def test_a_sink_that_joins_late_is_told_everything(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of(), folder, [stop_after(3)])
        assert not (folder / "tracking.json").exists()
        run(scenario_of(LINES), folder, resume=True)
        assert rounds_of(folder) == [0, 1, 2, 3, 4, 5]
        assert [bool(line["clients"]) for line in lines_of(folder)[1:-1]] == [True, False, True, False, True, True]

    def test_a_round_that_was_taken_down_and_not_told_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C strikes between the run folder and the sinks."""
        folder, call = tmp_path / "run", Tracking.__call__

        def interrupted(self: Tracking, finished: Round) -> None:
            if finished.number == 3:
                raise KeyboardInterrupt
            call(self, finished)

        monkeypatch.setattr(Tracking, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of(LINES), folder)
        assert pd.read_parquet(folder / "rounds.parquet")["round"].tolist() == rounds_of(folder) == [0, 1, 2, 3]
        assert lines_of(folder)[-1] == {"status": "interrupted", "summary": {}}

    def test_it_is_known_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of(LINES), folder, [stop_after(3)])
        run(scenario_of(LINES), folder, resume=True)
        starts = [line["start"] for line in lines_of(folder) if "start" in line]
        assert [(start["resumed"], start["reached"]) for start in starts] == [("", -1), ("first", 3)]
        assert rounds_of(folder) == [0, 1, 2, 3, 4, 5]

    def test_a_run_that_begins_again_in_its_folder(self, tmp_path: Path) -> None:
        """It was killed before its first checkpoint."""
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of(LINES), folder, [stop_after(1)])
        state_file(folder).unlink()
        run(scenario_of(LINES), folder, resume=True)
        assert rounds_of(folder) == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("damage", ["{", "[]", '{"x": 1}', '{"x": {"id": 1, "reached": "far"}}'])
    def test_a_damaged_note_costs_a_warning(self, damage: str, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of(rounds=3), folder, [stop_after(2)])
        (folder / "tracking.json").write_text(damage)
        run(scenario_of(LINES, rounds=3), folder, resume=True)
        assert rounds_of(folder) == [0, 1, 2, 3]
        [warning] = log_of(folder)
        assert "tracking.json cannot be read, trackers begin new runs" in warning

    def test_trackers_may_change_and_nothing_else_does(self, tmp_path: Path) -> None:
        with_sink, without = scenario_of(LINES), Scenario.of(TABLE)
        assert with_sink.digest() == without.digest()
        folders = [run(scenario, tmp_path / str(place)) for place, scenario in enumerate((with_sink, without))]
        one, two = (json.loads((folder / "summary.json").read_text())["model_sha256"] for folder in folders)
        assert one == two


class TestTrouble:
    @pytest.mark.parametrize("how", ["raise", "exit"])
    @pytest.mark.parametrize("at", ["start", "round", "finish"])
    def test_a_tracker_that_fails_is_dropped_with_one_warning(self, at: str, how: str, tmp_path: Path) -> None:
        folder = run(scenario_of({"name": TROUBLE, "at": at, "how": how}, LINES), tmp_path / "run")
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        [warning] = log_of(folder)
        cause = f"OSError: no tracker at {at}" if how == "raise" else "SystemExit: 3"
        assert f"WARNING tracking: {TROUBLE} failed: {cause}; it is told no more, the run goes on" in warning
        assert rounds_of(folder) == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("at", ["start", "round"])
    def test_no_round_waits_for_a_tracker(self, at: str, tmp_path: Path) -> None:
        """The tracker answers when the last round is over; a run that waited for it would never get there."""

        def release(finished: Round) -> None:
            if finished.number == TABLE["rounds"]:
                own.HOLD.set()

        hanging = {"name": TROUBLE, "at": at, "how": "hang"}
        folder = run(scenario_of(hanging, LINES), tmp_path / "run", [release])
        assert log_of(folder) == []
        assert json.loads((folder / "tracking.json").read_text())[TROUBLE]["reached"] == 5

    @pytest.mark.parametrize("at", ["start", "round", "finish"])
    def test_one_that_hangs_for_ever_is_left_behind(
        self, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "FAREWELL_S", 0.5)
        monkeypatch.setattr(tracking, "OPENING_S", 0.1)
        folder = run(scenario_of({"name": TROUBLE, "at": at, "how": "hang"}, LINES), tmp_path / "run")
        [warning] = log_of(folder)
        assert f"{TROUBLE} has not answered for 0 s" in warning
        assert rounds_of(folder) == [0, 1, 2, 3, 4, 5]
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"

    def test_what_it_is_not_told_does_not_pile_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracking, "STALLED_S", 0.0)
        folder = run(scenario_of({"name": TROUBLE, "at": "start", "how": "hang"}), tmp_path / "run")
        [warning] = log_of(folder)
        assert f"{TROUBLE} has not answered for 0 s; it is told no more" in warning

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        """A directory lies where the note belongs."""

        def block(finished: Round) -> None:
            if finished.number == 1:
                (tmp_path / "run" / "tracking.json.part").mkdir()

        folder = run(scenario_of(LINES), tmp_path / "run", [block])
        [warning] = log_of(folder)
        assert f"{LINES} failed: IsADirectoryError" in warning


class TestScenario:
    def test_every_mistake_is_named(self) -> None:
        table = {**TABLE, "tracking": {"sinks": ["tensorbord", {"name": "mlflow", "url": "x"}], "tag": {}}}
        with pytest.raises(ScenarioError) as caught:
            Scenario.of(table)
        text = str(caught.value)
        assert 'tracking.sinks.0: no such sink "tensorbord"; did you mean "tensorboard"?' in text
        assert "tracking.sinks.1.url: unknown option" in text
        assert "tracking.tag: unknown option" in text
        with pytest.raises(ScenarioError, match=r"tracking.sinks: wandb is there more than once"):
            scenario_of("wandb", {"name": "wandb", "project": "x"})

    def test_it_is_written_down_and_read_again(self) -> None:
        scenario = scenario_of("tensorboard", {"name": "mlflow", "uri": "sqlite:///x.db"}, tags={"study": "s"})
        assert Scenario.of(tomllib.loads(scenario.to_toml())) == scenario
        assert scenario.tracking is not None
        assert Scenario.of({**TABLE, "tracking": {"tags": {"seed": 3}}}).tracking.tags == {"seed": "3"}  # type: ignore[union-attr]

    @pytest.mark.parametrize("sink", ["tensorboard", "mlflow", "wandb"])
    def test_a_package_that_is_missing(self, sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from fedsim import settings

        monkeypatch.setattr(settings, "find_spec", {}.get)
        with pytest.raises(ScenarioError) as caught:
            build_federation(scenario_of(LINES, sink))
        assert f"tracking.sinks.1: {sink} needs {sink}" in str(caught.value)
        assert f"pip install 'fedsim[{sink}]'" in str(caught.value)


class TestCommand:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        file = tmp_path / "small.toml"
        file.write_text(scenario_of("wandb").to_toml())
        return file

    def call(self, monkeypatch: pytest.MonkeyPatch, *words: object) -> object:
        monkeypatch.setattr(sys, "argv", ["run_sim.py", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            run_sim.main()
        return stopped.value.code

    def test_track_adds_sinks(self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        words = ["run", path, "--out", tmp_path / "run", "--set", "tracking.sinks=[]", "--set", "rounds=1"]
        assert self.call(monkeypatch, *words, "--track", LINES) == 0
        assert rounds_of(tmp_path / "run") == [0, 1]
        scenario = Scenario.load(path, tracking.changes_of(["tensorboard", LINES]))
        assert scenario.tracking is not None
        assert [type(sink).__name__ for sink in scenario.tracking.sinks] == ["WandB", "TensorBoard", "Lines"]

    def test_a_study_tells_its_runs_apart(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = [
            "compare",
            path,
            "--strategies",
            "fedavg,afl",
            "--seeds",
            "1",
            "--partitions",
            "2",
            "--track",
            LINES,
        ]
        changes = ["--set", "tracking.sinks=[]", "--set", "rounds=1", "--set", "tracking.tags.note=x"]
        assert self.call(monkeypatch, *words, *changes, "--out", tmp_path / "study") == 0
        told = [lines_of(folder)[0]["start"]["tags"] for folder in (tmp_path / "study" / "runs").iterdir()]
        assert {(tags["method"], tags["partition"], tags["seed"]) for tags in told} == {
            ("fedavg", "0", "0"), ("fedavg", "1", "0"), ("afl", "0", "0"), ("afl", "1", "0"),
        }  # fmt: skip
        assert len(told) == 4
        assert {(tags["study"], tags["scenario"], tags["note"]) for tags in told} == {("small", "small", "x")}

    def test_an_unknown_one(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.call(monkeypatch, "run", path, "--out", tmp_path / "run", "--track", "mlfow") == 2
        assert 'no such sink "mlfow"; did you mean "mlflow"? there are mlflow, tensorboard, wandb' in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "run").exists()
