"""TensorBoard, MLflow and W&B: what they hold, read with their own readers, is what the run folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedsim.scenario import Scenario
from fedsim.sinks import Tracked
from fedsim.sinks.wandb import WandB
from tests.sinks.readers import Held, expected, fairness_of, of_mlflow, of_tensorboard, of_wandb
from tests.sinks.runs import log_of, run, scenario_of, stop_after

SINKS = ("tensorboard", "mlflow", "wandb")
SCENARIO: Scenario = scenario_of(*SINKS, tags={"study": "pairs", "method": "AdaFed (mean)"})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run folders are, and the store that they share: making its tables takes seconds."""
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    """A finished run that all three were told of."""
    return run(SCENARIO, home / "whole")


@pytest.fixture(scope="module")
def resumed(home: Path) -> Path:
    """Stopped after round 3, whose checkpoint is of round 2, and gone on with: round 3 was trained twice.

    TensorBoard had been told as far as round 1 only when the process died, and was writing round 2.
    """
    folder = home / "resumed"
    with pytest.raises(KeyboardInterrupt):
        run(SCENARIO, folder, [stop_after(3)])
    memory = json.loads((folder / "tracking.json").read_text())
    assert {name: entry["reached"] for name, entry in memory.items()} == dict.fromkeys(SINKS, 3)
    memory["tensorboard"]["reached"] = 1
    (folder / "tracking.json").write_text(json.dumps(memory))
    return run(SCENARIO, folder, resume=True)


def scalars_of(sink: str, folder: Path) -> Held:
    return {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb}[sink](folder)[0]


def rounded(held: Held, sink: str) -> Held:
    """TensorBoard keeps 24 bits."""
    keep = np.float32 if sink == "tensorboard" else np.float64
    return {name: {n: [float(keep(v)) for v in values] for n, values in of.items()} for name, of in held.items()}


@pytest.mark.parametrize("sink", SINKS)
def test_it_holds_the_table_of_rounds(sink: str, folder: Path) -> None:
    held = {
        k: v for k, v in scalars_of(sink, folder).items() if not k.startswith(("fairness/", "pooled/", "central/"))
    }
    assert held == rounded(expected(folder), sink)
    assert {"mean_accuracy", "worst_10", "pooled_class_accuracy/0", "cond"} <= set(held)
    assert set(held["mean_accuracy"]) == {0, 2, 4, 5}
    assert log_of(folder) == []


@pytest.mark.parametrize("sink", SINKS)
def test_a_run_that_goes_on_is_one_run_with_no_round_twice(sink: str, resumed: Path) -> None:
    held, table = scalars_of(sink, resumed), rounded(expected(resumed), sink)
    told = {k: v for k, v in held.items() if not k.startswith(("fairness/", "pooled/", "central/"))}
    assert {name: sorted(rounds) for name, rounds in told.items()} == {
        n: sorted(rounds) for n, rounds in table.items()
    }
    assert {len(values) for rounds in held.values() for values in rounds.values()} == {1}
    bits = [name for name in table if not name.startswith("seconds")]  # round 3 has been trained twice
    assert {name: told[name] for name in bits} == {name: table[name] for name in bits}
    assert log_of(resumed) == []


class TestTensorBoard:
    def test_histograms_of_the_clients(self, folder: Path, resumed: Path) -> None:
        for path in (folder, resumed):
            clients = pd.read_parquet(path / "clients.parquet")
            _, histograms = of_tensorboard(path)
            assert set(histograms) == {"clients/test_accuracy", "clients/test_loss"}
            for name, rounds in histograms.items():
                assert set(rounds) == {0, 2, 4, 5}
                for number, histogram in rounds.items():
                    values = clients[clients["round"] == number][name.removeprefix("clients/")].dropna()
                    assert histogram.num == len(values) == 6
                    assert histogram.sum == pytest.approx(values.sum())
                    assert histogram.min == pytest.approx(values.min())
                    assert histogram.max == pytest.approx(values.max())

    def test_the_fairness_block_at_the_end(self, folder: Path) -> None:
        held = {name: v for name, v in of_tensorboard(folder)[0].items() if name.startswith("fairness/")}
        wanted = {name: {5: [float(np.float32(value))]} for name, value in fairness_of(folder).items()}
        assert held == wanted

    def test_the_scenario_is_there_to_compare_runs_by(self, folder: Path) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import metadata

        events = EventAccumulator(str(folder / "tensorboard"))
        events.Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        hparams = metadata.parse_session_start_info_plugin_data(content).hparams
        assert hparams["client.batch_size"].number_value == 16
        assert hparams["strategy.name"].string_value == "adafed"
        assert hparams["tag.study"].string_value == "pairs"
        text = events.Tensors("scenario/text_summary")[0].tensor_proto.string_val[0].decode()
        assert 'name = "digits"' in text


class TestMLflow:
    def test_the_run(self, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        _, run = of_mlflow(folder)
        tags = {
            "study": "pairs",
            "scenario": "small",
            "method": "AdaFed (mean)",
            "partition": "dirichlet",
            "seed": "3",
        }
        assert tags.items() <= run.data.tags.items()
        assert run.data.tags["folder"] == str(folder)
        params = {"strategy.name": "adafed", "client.batch_size": "16", "evaluation.metrics.0": "class_accuracy"}
        assert params.items() <= run.data.params.items()
        assert not any(name.startswith("tracking") for name in run.data.params)
        assert run.info.status == "FINISHED"
        client = MlflowClient(f"sqlite:///{folder.parent}/mlruns/mlflow.db")
        assert client.get_experiment(run.info.experiment_id).name == "pairs"

    def test_the_fairness_block_at_the_end(self, folder: Path) -> None:
        held = {name: v for name, v in of_mlflow(folder)[0].items() if name.startswith("fairness/")}
        assert held == {name: {5: [value]} for name, value in fairness_of(folder).items()}

    def test_how_a_run_ended(self, home: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of("mlflow"), home / "stopped", [stop_after(1)])
        held, found = of_mlflow(home / "stopped")
        assert found.info.status == "KILLED"
        assert not any(name.startswith("fairness/") for name in held)

    def test_the_store_knows_better_than_a_note_that_was_not_written(self, home: Path) -> None:
        folder = home / "killed"
        with pytest.raises(KeyboardInterrupt):
            run(scenario_of("mlflow"), folder, [stop_after(3)])
        memory = json.loads((folder / "tracking.json").read_text())
        memory["mlflow"]["reached"] = 1
        (folder / "tracking.json").write_text(json.dumps(memory))
        run(scenario_of("mlflow"), folder, resume=True)
        held, _ = of_mlflow(folder)
        assert {number: len(values) for number, values in held["seconds"].items()} == dict.fromkeys(range(6), 1)

    def test_runs_share_a_store_of_their_own_choice(self, folder: Path, tmp_path: Path) -> None:
        from mlflow.tracking import MlflowClient

        uri = f"sqlite:///{folder.parent}/mlruns/mlflow.db"
        for name in ("a", "b"):
            run(scenario_of({"name": "mlflow", "uri": uri, "experiment": "mine"}, rounds=1), tmp_path / name)
        client = MlflowClient(uri)
        found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert {each.info.run_name for each in found} == {"a", "b"}
        assert not (tmp_path / "mlruns").exists()


class TestWandB:
    def test_the_run(self, folder: Path) -> None:
        _, [session] = of_wandb(folder)
        assert (session["project"], session["group"], session["name"]) == ("fedsim", "pairs", "whole")
        assert {"study=pairs", "method=AdaFed (mean)", "seed=3"} <= set(session["tags"])
        assert session["config"]["strategy"]["name"] == "adafed"
        assert "tracking" not in session["config"]

    def test_the_fairness_block_at_the_end(self, folder: Path) -> None:
        _, [session] = of_wandb(folder)
        held = {name: value for name, value in session["summary"].items() if name.startswith("fairness/")}
        assert held == pytest.approx(fairness_of(folder), rel=1e-15)
        assert session["summary"]["status"] == "finished"

    def test_online_the_server_knows_how_far_it_got(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import wandb

        given: dict[str, Any] = {}

        def init(**settings: Any) -> SimpleNamespace:
            given.update(settings)
            return SimpleNamespace(resumed=True, starting_step=4)

        monkeypatch.setattr(wandb, "init", init)
        monkeypatch.setattr(wandb, "login", lambda **_: True)
        tracked = Tracked(tmp_path, {}, {"study": "pairs"}, id="abc", reached=6)
        assert WandB(mode="online").start(tracked).reached == 3
        assert (given["id"], given["resume"], given["mode"]) == ("abc", "allow", "online")

    def test_both_sessions_are_one_run(self, resumed: Path) -> None:
        _, sessions = of_wandb(resumed)
        assert len(sessions) == 2
        assert len({session["id"] for session in sessions}) == 1

    def test_online_without_a_key_is_dropped_and_asks_nobody(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = run(scenario_of({"name": "wandb", "mode": "online"}, rounds=1), tmp_path / "run")
        [line] = log_of(folder)
        assert "not logged in; run `wandb login`" in line
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
