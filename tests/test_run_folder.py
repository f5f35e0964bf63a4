"""The run folder's contract: what is in it, that its numbers agree, and that it is there after an interruption."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from clients.app import LocalApp
from fedsim import run_folder
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, DataError
from fedsim.fairness import fairness_block, improved_share
from fedsim.federation import Federation
from fedsim.rounds import Round
from fedsim.run_folder import RunFolder, default_folder, model_digest, refuse_used
from fedsim.scenario import Scenario
from fedsim.server_app import conduct
from fedsim.wire import Answer, pack_arrays
from tests.test_determinism import federation_of, scenario_of

MEASURES = {
    "n", "mean", "weighted_mean", "std", "variance", "min", "max", "worst_5", "worst_10", "best_5", "best_10",
    "angle_deg", "kl", "entropy", "jain", "gini", "cv",
}  # fmt: skip
REQUIRED = {"scenario", "strategy", "seed", "rounds", "partition_sha256", "model_sha256", "fairness", "seconds"}
FILES = {
    "scenario.toml", "environment.json", "manifest.json", "partition.svg", "clients.parquet", "rounds.parquet",
    "summary.json", "model.safetensors", "log.txt", "report.html", "profile.json",
}  # fmt: skip
SCENARIO: Scenario = scenario_of("adafed", rounds=5, evaluation={"every": 2})


@pytest.fixture(scope="module")
def federation() -> Federation:
    return federation_of(SCENARIO)


@pytest.fixture(scope="module")
def folder(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    conduct(SCENARIO, federation, LocalGrid(LocalApp(SCENARIO, federation)), path)
    return path


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    summary = json.loads(
        (folder / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    return summary, pd.read_parquet(folder / "clients.parquet"), pd.read_parquet(folder / "rounds.parquet")


class TestFinished:
    def test_every_file_is_there_and_nothing_half_written(self, folder: Path) -> None:
        assert {file.name for file in folder.iterdir()} == FILES

    def test_the_keys_of_the_summary(self, folder: Path) -> None:
        summary, _, _ = read(folder)
        assert set(summary) >= REQUIRED
        assert set(summary) - REQUIRED <= {"status", "central", "notes", "data_sha256", "initial_sha256"}
        assert set(summary["fairness"]) == {"test_accuracy", "test_loss", "improved"}
        for name in ("test_accuracy", "test_loss"):
            assert set(summary["fairness"][name]) == MEASURES
        assert (summary["scenario"], summary["strategy"], summary["seed"]) == ("small", "adafed", 3)
        assert (summary["rounds"], summary["status"]) == (5, "finished")

    def test_its_numbers_are_those_of_the_last_evaluation(self, folder: Path) -> None:
        summary, clients, _ = read(folder)
        last = clients[clients["round"] == 5]
        assert len(last) == 8
        for name, higher in (("test_accuracy", True), ("test_loss", False)):
            expected = fairness_block(last[name], last["test_examples"], higher_is_better=higher)
            assert summary["fairness"][name] == pytest.approx(expected, rel=1e-12)
            assert summary["fairness"][name]["mean"] == pytest.approx(sum(last[name]) / 8)
            assert summary["fairness"][name]["worst_5"] == (min if higher else max)(last[name])

    def test_improved_is_the_mean_over_successive_evaluations(self, folder: Path) -> None:
        summary, clients, rounds = read(folder)
        losses = [clients[clients["round"] == number]["test_loss"].to_numpy() for number in (0, 2, 4, 5)]
        shares = [improved_share(before, after) for before, after in itertools.pairwise(losses)]
        assert summary["fairness"]["improved"] == pytest.approx(np.mean(shares))
        assert rounds.set_index("round").loc[[2, 4, 5], "improved"].tolist() == pytest.approx(shares)

    def test_the_hashes(self, folder: Path, federation: Federation) -> None:
        summary, _, _ = read(folder)
        assert summary["model_sha256"] == model_digest(load_file(folder / "model.safetensors"))
        assert summary["partition_sha256"] == federation.manifest["sha256"]
        assert json.loads((folder / "manifest.json").read_text()) == federation.manifest

    def test_the_clients_table(self, folder: Path, federation: Federation) -> None:
        _, clients, _ = read(folder)
        assert len(clients) == 6 * 8
        assert clients.groupby("round")["client"].apply(list).tolist() == [list(range(8))] * 6
        assert clients["train_examples"].tolist() == federation.train_sizes.tolist() * 6
        assert clients.groupby("round")["sampled"].sum().tolist() == [0, 5, 5, 5, 5, 5]
        sampled = clients[clients["sampled"]]
        for column in ("loss", "loss_after", "steps", "update_norm", "weight"):
            assert sampled[column].notna().all()
            assert clients[~clients["sampled"]][column].isna().all()
        evaluated = clients["round"].isin([0, 2, 4, 5])
        assert clients[evaluated]["test_accuracy"].notna().all()
        assert clients[~evaluated]["test_accuracy"].isna().all()
        assert not clients["failed"].any()

    def test_the_rounds_table(self, folder: Path) -> None:
        _, clients, rounds = read(folder)
        assert rounds["round"].tolist() == [0, 1, 2, 3, 4, 5]
        means = clients[clients["sampled"]].groupby("round")["loss"].mean()
        assert rounds["mean_loss"].tolist()[1:] == pytest.approx(means.tolist())
        assert rounds["server_lr"].tolist() == [1.0] * 6
        assert rounds["num_failures"].tolist() == [0] * 6

    def test_the_scenario_in_it_is_the_same_experiment(self, folder: Path) -> None:
        assert Scenario.load(folder / "scenario.toml") == SCENARIO

    def test_the_environment(self, folder: Path) -> None:
        environment = json.loads((folder / "environment.json").read_text())
        assert environment["seed"] == 3
        assert environment["scenario_digest"] == SCENARIO.digest()
        assert all(environment[name] for name in ("python", "torch", "flwr", "ray", "cpu_cores", "command"))


def stop_after(number: int, error: BaseException) -> Any:
    def callback(finished: Round) -> None:
        if finished.number == number:
            raise error

    return callback


class TestStopped:
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (KeyboardInterrupt(), "interrupted"),
            (ClientError(2, 4, "no luck"), "failed"),
            (ZeroDivisionError(), "failed"),
        ],
        ids=["Ctrl-C", "client", "bug"],
    )
    def test_what_was_reached_can_be_read(
        self, error: BaseException, status: str, federation: Federation, tmp_path: Path
    ) -> None:
        grid = LocalGrid(LocalApp(SCENARIO, federation))
        with pytest.raises(type(error)):
            conduct(SCENARIO, federation, grid, tmp_path / "run", callbacks=[stop_after(3, error)])
        assert {file.name for file in (tmp_path / "run").iterdir()} == {*FILES, "checkpoint"}
        summary, clients, rounds = read(tmp_path / "run")
        assert (summary["status"], summary["rounds"]) == (status, 3)
        assert rounds["round"].tolist() == [0, 1, 2, 3]
        last = clients[clients["round"] == 2]  # evaluated every second round
        assert summary["fairness"]["test_accuracy"]["mean"] == pytest.approx(last["test_accuracy"].mean())
        assert summary["model_sha256"] == model_digest(load_file(tmp_path / "run" / "model.safetensors"))
        assert status in (tmp_path / "run" / "log.txt").read_text()

    def test_a_run_stopped_before_its_first_round(self, federation: Federation, tmp_path: Path) -> None:
        class Broken(LocalGrid):
            def get_node_ids(self) -> list[int]:
                raise ClientError(0, 0, "no luck")

        with pytest.raises(ClientError, match="no luck"):
            conduct(SCENARIO, federation, Broken(LocalApp(SCENARIO, federation)), tmp_path / "run")
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["status"], summary["rounds"], summary["model_sha256"]) == ("failed", 0, None)
        assert (tmp_path / "run" / "report.html").exists()


def arrays_of(value: float = 0.0) -> Any:
    return pack_arrays({"w": np.full(2, value, np.float32)})


def evaluated(number: int, losses: Any, accuracies: Any, **others: Any) -> Round:
    answers = tuple(
        Answer(client, {"client": client, "num-examples": 5.0, "test_loss": loss, "test_accuracy": accuracy})
        for client, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    )
    seconds = {"train": 1.0, "aggregate": 0.5, "evaluate": 0.25, "total": 2.0}
    return Round(number, arrays_of(number), arrays_of(number), evaluated=answers, seconds=seconds, **others)


class TestCallback:
    @pytest.fixture
    def run(self, federation: Federation, tmp_path: Path) -> RunFolder:
        return RunFolder(tmp_path / "run", SCENARIO, federation)

    def test_it_is_readable_at_any_time_after_the_first_round(self, run: RunFolder) -> None:
        """A machine may lose power: what was reached must not wait for the end to be written."""
        run(evaluated(0, [1.0] * 8, [0.5] * 8))
        run(evaluated(1, [0.9] * 8, [0.6] * 8))
        assert len(pd.read_parquet(run.path / "clients.parquet")) >= 8

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_model_whose_losses_are_not_finite_is_written_down(self, run: RunFolder, bad: float) -> None:
        run(evaluated(0, [1.0] * 8, [0.5] * 8))
        run(evaluated(1, [bad] * 8, [0.1] * 8))
        run.close("failed")
        summary, clients, _ = read(run.path)
        assert summary["status"] == "failed"
        assert len(clients) == 16
        assert summary["fairness"]["test_accuracy"]["mean"] == pytest.approx(0.1)

    def test_failures_are_counted_and_marked(self, run: RunFolder) -> None:
        failed = Answer(6, {"loss": 2.0}, "no luck")
        trained = (Answer(1, {"loss": 1.0, "num-examples": 3.0, "my-number": 7.0}), failed)
        run(evaluated(0, [1.0] * 8, [0.5] * 8))
        run(evaluated(1, [1.0] * 8, [0.5] * 8, trained=trained, failures=(failed,), weights={1: 1.0}))
        run.close("finished")
        _, clients, rounds = read(run.path)
        second = clients[clients["round"] == 1]
        assert second["failed"].tolist() == [client == 6 for client in range(8)]
        assert second["sampled"].tolist() == [client in (1, 6) for client in range(8)]
        assert second["my_number"].tolist()[1] == 7.0
        assert second["weight"].notna().tolist() == [client == 1 for client in range(8)]
        assert rounds["num_failures"].tolist() == [0, 1]

    def test_a_failed_node_that_is_no_client_number_is_no_crash(self, run: RunFolder) -> None:
        """In deployment a node that fails without an answer is known by its 64-bit id alone."""
        failed = Answer(2**61, {}, "no luck")
        run(evaluated(0, [1.0] * 8, [0.5] * 8, trained=(failed,), failures=(failed,)))
        run.close("finished")
        assert read(run.path)[2]["num_failures"].tolist() == [1]

    def test_lists_that_no_metric_gives_are_left_alone(self, run: RunFolder) -> None:
        """A client of somebody else's may send any list; a column of numbers is no place for it."""
        sent = Answer(1, {"num-examples": 3.0}, vectors={"loss": np.ones(3), "sums.cmi": np.ones(220)})
        run(evaluated(0, [1.0] * 8, [0.5] * 8, trained=(sent,)))
        run.close("finished")
        _, clients, rounds = read(run.path)
        assert clients["loss"].isna().all()
        assert not [name for name in (*clients, *rounds) if "cmi" in name]

    def test_seconds_add_up(self, run: RunFolder) -> None:
        for number in range(3):
            run(evaluated(number, [1.0] * 8, [0.5] * 8))
        seconds = run.close("finished")["seconds"]
        assert (seconds["train"], seconds["aggregate"], seconds["evaluate"]) == (3.0, 1.5, 0.75)
        assert set(seconds) == {"start", "train", "aggregate", "evaluate", "total"}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    refuse_used(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    refuse_used(tmp_path / "empty")
    (tmp_path / "empty" / "file").write_text("x")
    for path in (tmp_path / "empty", tmp_path / "empty" / "file"):
        with pytest.raises(DataError, match="not an empty folder; name another one with --out"):
            refuse_used(path)


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    names = []
    for _ in range(3):
        folder = default_folder(SCENARIO)
        folder.mkdir(parents=True)
        names.append(folder.name)
    assert names[0] == "small-adafed-seed3-20260101-000000"
    assert len(set(names)) == 3


def test_the_digest_sees_names_shapes_types_and_bits() -> None:
    one = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(1, np.float32)}
    others = [
        {"a": one["a"].reshape(2, 3), "b": one["b"]},
        {"a": one["a"].astype(np.float64), "b": one["b"]},
        {"c": one["a"], "b": one["b"]},
        {"a": one["a"], "b": -one["b"]},  # -0.0 has other bits
    ]
    assert len({model_digest(arrays) for arrays in [one, *others]}) == 5
    assert model_digest(dict(reversed(one.items()))) == model_digest(one)


class TestManyClients:
    """Above a number of clients, rows that say nothing are left out."""

    @pytest.fixture
    def two(self, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        paths = []
        for most in (run_folder.EVERY_CLIENT, 7):
            monkeypatch.setattr(run_folder, "EVERY_CLIENT", most)
            paths.append(tmp_path / str(most))
            conduct(SCENARIO, federation, LocalGrid(LocalApp(SCENARIO, federation)), paths[-1])
        return paths

    def test_what_is_left_out_says_nothing(self, two: list[Path]) -> None:
        (_, full, _), (_, short, _) = map(read, two)
        says = full["sampled"] | full["failed"] | full["round"].isin([0, 2, 4, 5])
        assert 0 < (~says).sum() == len(full) - len(short)
        pd.testing.assert_frame_equal(short, full[says].reset_index(drop=True), check_exact=True)
        silent = full[~says].drop(columns=["round", "client", "train_examples", "test_examples"])
        assert not silent[["sampled", "failed"]].to_numpy().any()
        assert silent.drop(columns=["sampled", "failed"]).isna().to_numpy().all()

    def test_summary_and_rounds_are_the_same(self, two: list[Path]) -> None:
        (full, _, rounds), (short, _, others) = map(read, two)
        assert {**full, "seconds": None} == {**short, "seconds": None}
        clocks = [column for column in rounds if column.startswith("seconds")]
        pd.testing.assert_frame_equal(rounds.drop(columns=clocks), others.drop(columns=clocks), check_exact=True)
