"""What is run and what is not: finished runs never again, interrupted ones go on, failed ones are tried again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fedsim.run_folder
from fedsim import files
from fedsim.datasets.digits import Digits
from fedsim.errors import DataError, ScenarioError
from fedsim.lock import RunLock
from fedsim.study import conductor, perform, tuning
from fedsim.study.design import Design
from tests.study.conftest import METHODS, PARTITIONS, SEEDS
from tests.study.studies import Counted, copied, design, rewrite, scenario, study_of, told

OURS = "qfedavg[q=0.5]"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


class TestByContent:
    def test_only_what_is_new_is_run(self, tmp_path: Path, counted: Counted) -> None:
        path, out = scenario(tmp_path), tmp_path / "out"

        def compared(*methods: Any, changes: tuple[str, ...] = (), seeds: int = 2) -> list[str]:
            made = design(path, *methods, changes=changes, seeds=seeds)
            return sorted(counted.during(lambda: conductor.compare(made, out, replaces=True)))

        assert len(compared("fedavg", OURS)) == 4
        first = told(out)
        assert compared("fedavg", OURS) == []
        assert told(out) == first
        assert compared("fedavg", OURS, seeds=3) == ["small, fedavg, s2", f"small, {OURS}, s2"]
        assert compared("fedavg", OURS, "afl") == ["small, afl, s0", "small, afl, s1"]
        assert compared("fedavg", "qfedavg[q=1.5]") == ["small, qfedavg[q=1.5], s0", "small, qfedavg[q=1.5], s1"]
        # What only people read, and an option written another way.
        assert compared("fedavg", OURS, changes=("description=in other words", "engine.workers=2")) == []
        assert compared("fedavg", "qfedavg[q=5e-1]") == []
        assert compared("fedavg", {"strategy": "fedavg", "label": "again"}, seeds=3) == []
        assert compared("fedavg", OURS) == []
        assert {**told(out), "environment": 0} == {**first, "environment": 0}

    def test_methods_that_are_the_same_run_once(self, tmp_path: Path, counted: Counted) -> None:
        made = design(scenario(tmp_path), "fedavg", {"strategy": "fedavg", "label": "twin"}, seeds=1)
        found = conductor.compare(made, tmp_path / "out")
        assert len(counted.names) == 1
        assert [run["status"] for run in found["runs"]] == ["finished", "finished"]

    def test_a_run_of_other_versions_is_not_made_again_but_said(self, finished: Path, tmp_path: Path) -> None:
        folder = copied(finished, tmp_path / "study")
        environment = next((folder / "runs").glob("*-qfedavg-*")) / "environment.json"
        (session,) = json.loads(environment.read_text())["sessions"]
        rewrite(environment, sessions=[{**session, "torch": "0.1"}])
        conductor.report(folder)
        assert any("2 of the packages" in line for line in study_of(folder)["warnings"])
        rewrite(environment, sessions=[{**session, "commit": "a" * 40}, session])
        conductor.report(folder)
        (run,) = [r for r in study_of(folder)["runs"] if r["folder"] == f"runs/{environment.parent.name}"]
        assert run["commits"] == sorted({"a" * 40, str(session["commit"])})
        assert any("2 versions of the code" in line for line in study_of(folder)["warnings"])

    def test_a_run_that_went_on_with_other_versions_says_so(self, finished: Path, tmp_path: Path) -> None:
        folder = copied(finished, tmp_path / "study")
        summary_file = next((folder / "runs").glob("*-qfedavg-*")) / "summary.json"
        notes = ["Resumed at round 1 with another torch (1 -> 2): bits may differ.", "Another word."]
        rewrite(summary_file, notes=notes)
        conductor.report(folder)
        (run,) = [r for r in study_of(folder)["runs"] if r["folder"] == f"runs/{summary_file.parent.name}"]
        assert run["notes"] == notes[:1]
        assert any("1 runs went on with other versions" in line for line in study_of(folder)["warnings"])

    def test_the_loss_that_a_run_began_with_is_that_of_the_untrained_model(self, finished: Path) -> None:
        for run in study_of(finished)["runs"]:
            if run["status"] == "finished":
                rows = pd.read_parquet(finished / run["folder"] / "clients.parquet")
                before = rows[rows["round"] == 0]["test_loss"].mean()
                assert run["first_loss"] == pytest.approx(before)


class TestFailed:
    def test_a_mistake_in_a_rule_is_the_methods_own_failure(self, tmp_path: Path, counted: Counted) -> None:
        """Nobody foresaw it, and the other methods do not suffer."""
        made = design(
            scenario(tmp_path), "fedavg", {"strategy": "tests.study.rules:Unsound", "label": "mine"}, seeds=2
        )
        found = conductor.compare(made, tmp_path / "out")
        assert [(run["method"], run["status"]) for run in found["runs"]] == [
            ("fedavg", "finished"),
            ("mine", "failed"),
            ("fedavg", "finished"),
            ("mine", "failed"),
        ]
        assert "nobody thought of this" in found["runs"][1]["error"]
        assert found["status"] == "failed"
        with pytest.raises(conductor.RoundError, match="2 of 4 runs failed") as caught:
            conductor.raise_for(found, tmp_path / "out")
        assert "small, mine, seed 0: " in str(caught.value)
        assert caught.value.exit_code == 1
        again = counted.during(lambda: conductor.compare(made, tmp_path / "out"))
        assert again == ["small, mine, s0", "small, mine, s1"]

    def test_a_run_that_cannot_begin_is_listed_with_its_cause(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first pair fits, which is all that is tried out; a later one does not."""
        made = design(scenario(tmp_path), "fedavg", OURS, seeds=2)
        real = perform.build_federation

        def built(of: Any) -> Any:
            if of.seed == 1:
                raise DataError("partition: client 3 needs at least 2 examples")
            return real(of)

        monkeypatch.setattr(perform, "build_federation", built)
        found = conductor.compare(made, tmp_path / "out")
        assert [run["status"] for run in found["runs"]] == ["finished", "finished", "failed", "failed"]
        assert found["runs"][2]["error"] == "partition: client 3 needs at least 2 examples"
        with pytest.raises(conductor.RoundError):
            conductor.raise_for(found, tmp_path / "out")
        monkeypatch.undo()
        assert conductor.compare(made, tmp_path / "out")["status"] == "finished"

    def test_a_run_that_somebody_else_writes_is_left_to_them(self, tmp_path: Path) -> None:
        made, out = design(scenario(tmp_path), "fedavg", OURS, seeds=1), tmp_path / "out"
        theirs = out.resolve() / "runs" / made.runs({})[1].id
        (out / "runs").mkdir(parents=True)
        (out / "study.toml").write_text(made.to_toml())
        with RunLock(theirs):
            before = {path.name for path in theirs.iterdir()}
            found = conductor.compare(made, out)
            assert {path.name for path in theirs.iterdir()} == before
        assert [run["status"] for run in found["runs"]] == ["finished", "missing"]
        with pytest.raises(conductor.RoundError, match="1 of 2 runs failed"):
            conductor.raise_for(found, out)
        assert "is being written by" in (out / "log.txt").read_text()

    def test_a_failed_run_is_tried_again_and_may_succeed(self, tmp_path: Path, finished: Path) -> None:
        folder = copied(finished, tmp_path / "study")
        made = Design.read(folder)
        run = next(run for run in made.runs({}) if run.method == OURS)
        path = folder / "runs" / run.id
        was = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**was, "status": "failed", "error": "on purpose"}))
        made = made.only(["fedavg", OURS])
        found = conductor.compare(made, folder, replaces=True)
        assert found["status"] == "finished"
        assert json.loads((path / "summary.json").read_text())["model_sha256"] == was["model_sha256"]


Place = tuple[Any, str, int | str]

PLACES: dict[str, Place] = {
    "while it is tried out": (conductor, "_try_out", 1),
    "in tuning": (conductor, "perform", 2),
    "between tuning and runs": (tuning, "chosen_values", 1),
    "in the first round of the first run": (perform, "heed", 9),
    "in the middle of a run": (perform, "heed", 14),
    "between two runs": (conductor, "perform", 6),
    "while a run is written": (fedsim.run_folder, "_write_table", 12),
    "while the results are computed": (conductor, "gathered", 1),
    "while the results are written": (files, "replace", "study.json"),
}


def tuned(folder: Path) -> Design:
    """Two methods, one of whose clients keep a state: 2 x 2 trials of 2 rounds, 2 x 2 runs of 4."""
    tune = {"grid": {"client.lr": [0.05, 0.2]}, "own": {}, "rounds": 2}
    return design(scenario(folder, rounds=4), "fedavg", "scaffold", seeds=2, tune=tune)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    conductor.compare(tuned(folder), folder / "out")
    return told(folder / "out")


class TestInterrupted:
    @pytest.mark.parametrize("place", PLACES)
    def test_a_study_goes_on_as_if_nothing_had_been(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[str, Any], place: str
    ) -> None:
        module, name, count = PLACES[place]
        out, made = tmp_path / "out", tuned(tmp_path)
        with monkeypatch.context() as patch:
            interrupting(patch, module, name, count)
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(made, out)
        if (out / "study.json").exists():
            assert study_of(out)["status"] == "interrupted"
            assert not any(run["error"] for run in study_of(out)["runs"])
        found = conductor.resume(out) if (out / "study.toml").exists() else conductor.compare(made, out)
        assert found["status"] == "finished"
        assert told(out) == undisturbed
        assert not list(out.rglob("checkpoint"))
        assert not list(out.rglob("*.part"))

    def test_an_interrupted_run_goes_on_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = design(scenario(tmp_path, rounds=4), "scaffold", "fedavg", seeds=1)
        with monkeypatch.context() as patch:
            interrupting(
                patch, perform, "heed", 4
            )  # in round 3 of 4, round 0 counts: the checkpoint is that of round 2
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(made, tmp_path / "out")
        rounds: list[int] = []
        real = perform.heed
        monkeypatch.setattr(perform, "heed", lambda finished: (rounds.append(finished.number), real(finished)))
        conductor.compare(made, tmp_path / "out")
        assert rounds == [3, 4, 0, 1, 2, 3, 4]

    def test_a_damaged_checkpoint_begins_the_run_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made, out = design(scenario(tmp_path, rounds=3), "scaffold", "fedavg", seeds=1), tmp_path / "out"
        conductor.compare(made, tmp_path / "other")
        with monkeypatch.context() as patch:
            interrupting(patch, perform, "heed", 3)
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(made, out)
        (state,) = out.rglob("state.safetensors")
        state.write_bytes(state.read_bytes()[:-7])
        conductor.compare(made, out)
        assert told(out) == told(tmp_path / "other")

    def test_the_results_of_an_interrupted_study_say_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            interrupting(patch, conductor, "perform", 4)
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(design(scenario(tmp_path), "fedavg", OURS, seeds=3), tmp_path / "out")
        found = study_of(tmp_path / "out")
        assert [run["status"] for run in found["runs"]] == ["finished"] * 3 + ["missing"] * 3
        assert any(line.startswith("3 of 6 runs have not been made yet") for line in found["warnings"])

    def test_a_study_interrupted_in_its_tuning_has_chosen_nothing_and_can_be_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The best of what has been tried so far is not the best of what is to be tried."""
        out = tmp_path / "out"
        with monkeypatch.context() as patch:
            interrupting(patch, conductor, "perform", 4)
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(tuned(tmp_path), out)
        before = told(out)
        assert before["tuning"]["chosen"] == []
        assert [trial["score"] is None for trial in before["tuning"]["trials"]] == [False] * 3 + [True]
        conductor.report(out)
        assert told(out) == before

    def test_until_tuning_is_complete_no_final_run_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Runs that lie there may be others than those that tuning will ask for."""
        path, out = scenario(tmp_path), tmp_path / "out"
        conductor.compare(design(path, "fedavg", "scaffold", seeds=1), out)
        tune = {"grid": {"client.lr": [0.1, 0.2]}, "own": {}, "rounds": 1}
        made = design(path, "fedavg", "scaffold", seeds=1, tune=tune)
        with monkeypatch.context() as patch:
            interrupting(patch, conductor, "perform", 2)
            with pytest.raises(KeyboardInterrupt):
                conductor.compare(made, out, replaces=True)
        found = study_of(out)
        assert all((out / run["folder"] / "summary.json").is_file() for run in found["runs"])
        assert [run["status"] for run in found["runs"]] == ["missing"] * 2
        assert {entry["n"] for entry in found["results"]} == {0}
        assert [trial["error"] for trial in found["tuning"]["trials"]] == [None] * 4
        assert conductor.resume(out)["status"] == "finished"


class TestFolders:
    def test_a_folder_of_something_else_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.tex").write_text("ten years of work")
        made = design(scenario(tmp_path), "fedavg", OURS)
        with pytest.raises(DataError, match="holds no study; name another folder with --out"):
            conductor.compare(made, out)
        assert [path.name for path in out.iterdir()] == ["thesis.tex"]

    def test_two_at_once_are_refused(self, tmp_path: Path) -> None:
        made = design(scenario(tmp_path), "fedavg", OURS)
        with (
            RunLock(tmp_path / "out", tmp_path / "out" / "lock"),
            pytest.raises(DataError, match=r"is being written by|holds no study"),
        ):
            conductor.compare(made, tmp_path / "out")

    def test_a_mistake_leaves_no_folder_and_a_study_that_is_there_as_it_is(
        self, finished: Path, tmp_path: Path
    ) -> None:
        """That dropout fits this model is known only when the model is seen."""
        bad = {"strategy": "fedavg", "label": "bad", "changes": ['client.hooks=["ncmi"]']}
        path, crossed = scenario(tmp_path), {"seeds": SEEDS, "partitions": PARTITIONS}
        made = design(path, *METHODS, bad, **crossed)
        with pytest.raises(ScenarioError, match="small, bad: "):
            conductor.compare(made, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        folder = copied(finished, tmp_path / "study")
        before = (folder / "study.toml").read_text()
        with pytest.raises(ScenarioError, match="small, bad: "):
            conductor.compare(made, folder)
        assert (folder / "study.toml").read_text() == before

    def test_a_study_that_would_lose_runs_is_refused_unless_it_replaces(
        self, tmp_path: Path, counted: Counted
    ) -> None:
        path, out = scenario(tmp_path), tmp_path / "out"
        conductor.compare(design(path, "fedavg", OURS, seeds=2), out)
        before = {file: file.read_bytes() for file in (out / "study.toml", out / "study.json")}
        others: list[Design] = [
            design(path, "fedavg", "afl", seeds=2),  # lacks a method
            design(path, "fedavg", OURS, "afl", seeds=[1, 2]),  # a seed
            design(path, "fedavg", OURS, "afl", seeds=2, changes=["rounds=1"]),  # all
            design(path, "fedavg", OURS, seeds=2, partitions=1),
            design(path, "fedavg", OURS, seeds=2, tune={"grid": {"client.lr": [0.1]}, "own": {}}),  # is tuned
        ]
        for made in others:
            with pytest.raises(DataError, match=r"holds another study, whose results would be lost.*say --replace"):
                conductor.compare(made, out)
        assert {file: file.read_bytes() for file in before} == before
        assert counted.during(lambda: conductor.compare(design(path, "fedavg", OURS, "afl", seeds=3), out))
        made = counted.during(lambda: conductor.compare(others[0], out, replaces=True))
        assert made == []  # what they share is kept
        assert {run["method"] for run in study_of(out)["runs"]} == {"fedavg", "afl"}
        with pytest.raises(DataError, match="holds no study"):  # what is no study is not replaced either
            conductor.compare(others[0], path.parent, replaces=True)

    def test_a_tuned_study_whose_trials_would_be_others_is_refused(self, tmp_path: Path) -> None:
        """Without a budget the smallest grid sets it: a method with a smaller one takes trials from all."""
        tune = {"grid": {"client.lr": [0.05, 0.1, 0.2]}, "own": {}, "rounds": 1}
        path, out = scenario(tmp_path), tmp_path / "out"
        conductor.compare(design(path, "fedavg", "afl", seeds=1, tune=tune), out)
        fixed = {"strategy": "fedavg", "label": "fixed", "changes": ["client.lr=0.3"]}
        with pytest.raises(DataError, match="holds another study"):
            conductor.compare(design(path, "fedavg", "afl", fixed, seeds=1, tune=tune), out)
        conductor.compare(design(path, "fedavg", "afl", "scaffold", seeds=1, tune=tune), out)
        assert {run["method"] for run in study_of(out)["runs"]} == {"fedavg", "afl", "scaffold"}

    @pytest.mark.parametrize("tuned_first", [False, True])
    def test_data_that_have_changed_are_refused_before_a_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned_first: bool
    ) -> None:
        tune = {"grid": {"client.lr": [0.1, 0.2]}, "own": {}, "rounds": 1} if tuned_first else None
        path, out, options = scenario(tmp_path), tmp_path / "out", {"tune": tune} if tune else {}
        conductor.compare(design(path, "fedavg", "afl", seeds=1, **options), out)
        real = Digits.load

        def brighter(self: Digits, root: Path) -> Any:
            raw = real(self, root)
            raw.train.x.mul_(0.5)
            return raw

        before = {file: file.read_bytes() for file in (out / "study.toml", out / "study.json")}
        with monkeypatch.context() as patch:
            patch.setattr(Digits, "load", brighter)
            again = Counted(patch)
            with pytest.raises(DataError, match="the data of small have changed since this run was made"):
                conductor.compare(design(path, "fedavg", "afl", seeds=2, **options), out)
            assert again.names == []
        assert {file: file.read_bytes() for file in before} == before
        assert conductor.compare(design(path, "fedavg", "afl", seeds=2, **options), out)["status"] == "finished"

    def test_results_of_an_earlier_session_are_called_interrupted_while_it_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever reads them meanwhile, or after the machine has died, is not told that they are all."""
        path, out = scenario(tmp_path), tmp_path / "out"
        conductor.compare(design(path, "fedavg", "afl", seeds=1), out)
        seen: list[dict[str, Any]] = []
        real = conductor.perform

        def looking(*given: Any) -> Any:
            seen.append(study_of(out))
            return real(*given)

        monkeypatch.setattr(conductor, "perform", looking)
        done = study_of(out)
        conductor.compare(design(path, "fedavg", "afl", seeds=2), out)
        assert [each["status"] for each in seen] == ["interrupted"] * 2
        assert [{**each, "status": "finished"} for each in seen] == [done] * 2
        assert study_of(out)["status"] == "finished"

    def test_a_trial_that_is_damaged_is_made_again_before_anything_is_chosen(
        self, tmp_path: Path, counted: Counted
    ) -> None:
        out = tmp_path / "out"
        conductor.compare(tuned(tmp_path), out)
        whole = told(out)
        trial = next((out / "tuning").glob("*-scaffold-*"))
        (trial / "clients.parquet").write_bytes(b"PAR1")
        conductor.report(out)
        found = study_of(out)
        assert found["tuning"]["chosen"] == []
        assert {run["status"] for run in found["runs"]} == {"missing"}
        (error,) = [each["error"] for each in found["tuning"]["trials"] if each["error"]]
        assert error.startswith("its folder is damaged")
        assert len(counted.during(lambda: conductor.resume(out))) == 1
        assert told(out) == whole

    def test_resume_changes_nothing(self, finished: Path) -> None:
        with pytest.raises(ScenarioError, match="would make other runs"):
            conductor.resume(finished, ["rounds=3"])


def interrupting(patch: pytest.MonkeyPatch, module: Any, name: str, count: int | str) -> None:
    """Raise KeyboardInterrupt in a function's place at its count-th call, or at the first for a file so called."""
    real: Callable[..., Any] = getattr(module, name)
    calls = 0

    def call(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += isinstance(count, int) or args[0].name == count
        if calls == (count if isinstance(count, int) else 1):
            raise KeyboardInterrupt
        return real(*args, **more)

    patch.setattr(module, name, call)
