"""`verify`: what a scenario says comes out, comes out, or exit code 1 says that it does not."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from fedsim.errors import DataError, ScenarioError
from fedsim.study import conductor
from fedsim.study.settings import Expectation
from fedsim.study.verification import held_against, verify
from tests.study.studies import Counted, design, entry, rewrite, scenario, study_of

SOURCE = "a paper, Table 1"


def expecting(folder: Path, expect: dict[str, Any], file: str = "known", **tables: Any) -> Path:
    """Write a scenario with expectations: method -> measure -> (value, within)."""
    table = {
        method: {m: {"value": value, "within": within, "source": SOURCE} for m, (value, within) in measures.items()}
        for method, measures in expect.items()
    }
    return scenario(folder, file, expect=table, **{"study": {"seeds": 2}, **tables})


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What comes out."""
    folder = tmp_path_factory.mktemp("known")
    found = conductor.compare(design(scenario(folder), "fedavg", "qfedavg[q=0.5]", seeds=2), folder / "out")
    return {metric: entry(found, "fedavg", metric)["mean"] for metric in ("mean", "std")}


def test_within_and_outside(tmp_path: Path, known: dict[str, float], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"  # the runs are the same, and made once
    both = {"mean": (known["mean"] + 0.01, 0.011), "std": (known["std"] - 0.01, 0.011)}
    assert verify(expecting(tmp_path, {"fedavg": both}), out=out)
    assert "2 of 2 values are within what was expected" in capsys.readouterr().out
    assert not verify(expecting(tmp_path, {"fedavg": {**both, "mean": (known["mean"] + 0.01, 0.009)}}), out=out)
    text = capsys.readouterr().out
    assert "1 of 2 values are within" in text
    assert text.count("OUTSIDE") == 1
    assert {run["method"] for run in study_of(out)["runs"]} == {"fedavg"}  # nothing else is run


def test_a_method_with_options_is_a_label_too(tmp_path: Path, known: dict[str, float]) -> None:
    label = "fedavg[client.lr=0.1]"
    assert verify(expecting(tmp_path, {label: {"mean": (known["mean"], 1e-6)}}), out=tmp_path / "out")


def test_a_run_that_failed_is_no_value(tmp_path: Path) -> None:
    with pytest.raises(conductor.RoundError, match="2 of 2 runs failed"):
        verify(expecting(tmp_path, {"fedavg[client.lr=3e38]": {"mean": (0.5, 0.5)}}), out=tmp_path / "out")


class TestAnew:
    """What is to be verified is the present, not what was once found."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}})

    def test_without_a_folder_everything_is_run_every_time(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        counted = Counted(monkeypatch)
        for _ in range(2):
            assert counted.during(lambda: verify(path)) == ["known, fedavg, s0", "known, fedavg, s1"]
        folders = sorted((tmp_path / "runs").iterdir())
        assert len(folders) == 2
        assert all(folder.name.startswith("verify-known-") for folder in folders)
        assert {study_of(folder)["status"] for folder in folders} == {"finished"}

    @pytest.mark.parametrize("name", ["commit", "torch", "numpy", "scipy", "flwr"])
    def test_a_run_that_other_code_made_counts_for_nothing(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        counted, out = Counted(monkeypatch), tmp_path / "out"
        verify(path, out=out)
        assert counted.during(lambda: verify(path, out=out)) == []
        environment = next((out / "runs").glob("*-s1-*")) / "environment.json"
        (session,) = json.loads(environment.read_text())["sessions"]
        # Also where only a part of it was: the first session of two.
        rewrite(environment, sessions=[{**session, name: "of old"}, session])
        assert counted.during(lambda: verify(path, out=out)) == ["known, fedavg, s1"]
        assert len(json.loads(environment.read_text())["sessions"]) == 1

    def test_trials_of_other_code_are_made_again_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tune = {"grid": {"client.lr": [0.05, 0.1]}, "own": {}, "rounds": 1}
        path = expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}}, study={"seeds": 1, "tune": tune})
        counted, out = Counted(monkeypatch), tmp_path / "out"
        verify(path, out=out)
        environment = next((out / "tuning").iterdir()) / "environment.json"
        (session,) = json.loads(environment.read_text())["sessions"]
        rewrite(environment, sessions=[{**session, "torch": "of old"}])
        assert len(counted.during(lambda: verify(path, out=out))) == 1

    def test_the_runs_of_another_study_are_left_alone(self, path: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        conductor.compare(design(scenario(tmp_path), "fedavg", "afl", seeds=2), out)
        for environment in (out / "runs").glob("*/environment.json"):
            (session,) = json.loads(environment.read_text())["sessions"]
            rewrite(environment, sessions=[{**session, "commit": "of old"}])
        before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
        with pytest.raises(DataError, match="holds another study"):
            verify(path, out=out)
        assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_line_says_what_was_found_and_expected_and_where_that_is_from(
    tmp_path: Path, known: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    mean, std = known["mean"], known["std"]
    path = expecting(tmp_path, {"fedavg": {"mean": (mean, 0.01), "std": (std + 1, 0.5)}})
    assert not verify(path, out=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    (within,) = [line for line in lines if line.startswith("within")]
    (outside,) = [line for line in lines if line.startswith("OUTSIDE")]
    assert "known, fedavg, mean " in within
    assert f"  {mean:.4f} (deviation " in within
    assert within.endswith(f"over 2), expected {mean - 0.01:.4f} to {mean + 0.01:.4f} [1]")
    assert "known, fedavg, standard deviation" in outside
    assert outside.endswith(f"expected {std + 0.5:.4f} to {std + 1.5:.4f} [1]")
    assert f"[1] {SOURCE}" in lines


class TestRefused:
    def test_nothing_expected(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match="expect: there is none"):
            verify(scenario(tmp_path))

    @pytest.mark.parametrize("change", ["rounds=3", "client.lr=0.2", "study.seeds=[5]", "data.limit=100"])
    def test_a_change_of_results_makes_expectations_void(self, tmp_path: Path, change: str) -> None:
        path = expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}})
        with pytest.raises(ScenarioError, match=r"--set: .* makes other runs than \[expect\] is about"):
            verify(path, [change], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_where_it_is_run_does_not(self, tmp_path: Path) -> None:
        path = expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}}, study={"seeds": 1})
        assert verify(path, ["engine.workers=3", "engine.checkpoint_every=0"], out=tmp_path / "out")

    def test_a_method_that_is_none_of_the_studys(self, tmp_path: Path) -> None:
        study = {"methods": ["fedavg", "afl"], "seeds": 1}
        path = expecting(tmp_path, {"fedav": {"mean": (0.5, 0.5)}}, study=study)
        with pytest.raises(
            ScenarioError, match=r'expect\.fedav: the study has no such method; did you mean "fedavg"'
        ):
            verify(path)

    def test_a_method_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match='did you mean "fedavg"'):
            verify(expecting(tmp_path, {"fedavgg": {"mean": (0.5, 0.5)}}))

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ({"value": 0.5, "source": "x"}, "must have value and within, or low and high"),
            (
                {"value": 0.5, "within": 0.1, "low": 0.4, "source": "x"},
                "must have value and within, or low and high",
            ),
            ({"low": 0.5, "high": 0.4, "source": "x"}, "low must be at most high"),
            ({"low": 0.4, "high": 0.5}, "source: missing"),
            ({"low": 0.4, "high": 0.5, "source": ""}, "source"),
            ({"value": 0.5, "within": 0.0, "source": "x"}, "within: must be greater than 0"),
            ({"value": float("nan"), "within": 0.1, "source": "x"}, "value: must be finite"),
            ({"low": float("-inf"), "high": 0.1, "source": "x"}, "low: must be finite"),
        ],
    )
    def test_a_range_that_is_none(self, tmp_path: Path, table: dict[str, Any], words: str) -> None:
        with pytest.raises(ScenarioError) as caught:
            verify(scenario(tmp_path, "bad", expect={"fedavg": {"mean": table}}))
        assert words in str(caught.value)

    def test_a_measure_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match='did you mean "mean"'):
            verify(expecting(tmp_path, {"fedavg": {"maen": (0.5, 0.1)}}))

    @pytest.mark.parametrize("text", ["study = 3\n", "expect = 3\n", "[expect]\nfedavg = 3\n"])
    def test_tables_that_are_none(self, tmp_path: Path, text: str) -> None:
        path = scenario(tmp_path)
        path.write_text(text + path.read_text() if text[0] != "[" else path.read_text() + text)
        with pytest.raises(ScenarioError):
            verify(path)


def test_what_is_expected_of_a_parent_is_not_expected_of_its_child(tmp_path: Path) -> None:
    expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.1)}}, "parent")
    (tmp_path / "child.toml").write_text('extends = "parent.toml"\nrounds = 1\n')
    with pytest.raises(ScenarioError, match="expect: there is none"):
        verify(tmp_path / "child.toml")


def test_a_study_holds_each_scenario_against_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}}, "a", study={})
    expecting(tmp_path, {"fedavg": {"mean": (0.5, 1e-9)}, "afl": {"std": (0.5, 0.5)}}, "b", study={}, rounds=1)
    (tmp_path / "both.toml").write_text('[study]\nscenarios = ["a.toml", "b.toml"]\nseeds = 1\n')
    assert not verify(tmp_path / "both.toml", out=tmp_path / "out")
    assert "2 of 3 values are within" in capsys.readouterr().out


def test_what_is_tuned_is_tuned_as_in_the_whole_study(tmp_path: Path) -> None:
    """With the budget of all its methods, and whatever is said of those that nothing is expected of."""
    tune = {"grid": {"client.lr": [0.05, 0.1, 0.2]}, "own": {"afl": {"strategy.lambda_lr": [0.1]}}, "rounds": 1}
    methods = ["fedavg", {"strategy": "fedavg", "label": "set", "changes": ["client.lr=0.1"]}, "afl"]
    tune["grid"]["server.lr"] = [0.5, 1.0]  # of the method that has a rate already, these 2 alone are left
    study = {"methods": methods, "seeds": 1, "tune": tune}
    path = expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}}, study=study)
    assert verify(path, out=tmp_path / "verified")
    whole = conductor.compare(design(path), tmp_path / "whole")
    alone = study_of(tmp_path / "verified")
    assert whole["tuning"]["budget"] == alone["tuning"]["budget"] == 2
    assert [t for t in whole["tuning"]["trials"] if t["method"] == "fedavg"] == alone["tuning"]["trials"]
    assert entry(whole, "fedavg", "mean", "known")["values"] == entry(alone, "fedavg", "mean", "known")["values"]


def test_changes_of_a_study_make_the_expectations_of_its_scenarios_void(tmp_path: Path) -> None:
    expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}}, "a", study={})
    (tmp_path / "s.toml").write_text('[study]\nscenarios = ["a.toml"]\nseeds = 1\nchanges = ["rounds=1"]\n')
    with pytest.raises(
        ScenarioError, match=r"study.changes: .*rounds=1.* makes other runs than \[expect\] is about"
    ):
        verify(tmp_path / "s.toml", out=tmp_path / "out")


def test_the_line_that_is_noted_makes_the_same_study_again(tmp_path: Path) -> None:
    path = expecting(tmp_path, {"fedavg": {"mean": (0.5, 0.5)}})
    verify(path, ["engine.workers=2"], seeds="7,", out=tmp_path / "out")
    words = shlex.split(json.loads((tmp_path / "out" / "study.json").read_text())["command"])
    assert words[:4] == ["python", "run_sim.py", "verify", str(path)]
    assert words[words.index("--seeds") + 1] == "7,"
    assert words[words.index("--set") + 1] == "engine.workers=2"


@pytest.mark.parametrize(
    ("value", "holds"), [(0.4, True), (0.5, True), (0.3999, False), (0.5001, False), (None, False)]
)
def test_ends_of_a_range_are_in_it_and_nothing_is_not(value: float | None, holds: bool) -> None:
    expected = {"s": {"fedavg": {"mean": Expectation(low=0.4, high=0.5, source="x")}}}
    results = [{"scenario": "s", "method": "fedavg", "metric": "mean", "mean": value, "std": None, "n": 1}]
    (line,) = held_against(results, expected)
    assert line.within == holds
    assert not held_against([], expected)[0].within
