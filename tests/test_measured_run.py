"""A run with metrics: what is in its tables is what the final model does, and what all clients do together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from clients.app import LocalApp
from clients.evaluation import evaluate
from fedsim.datasets import Split
from fedsim.engine.local import LocalGrid
from fedsim.errors import ScenarioError
from fedsim.fairness import fairness_block
from fedsim.federation import Federation
from fedsim.metrics import measured
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork, tensor_of
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, conduct
from tests.test_determinism import federation_of, scenario_of

METRICS = [
    "cmi", {"name": "calibration", "bins": 10}, "macro_f1", "class_accuracy", "groups",
    {"name": "tests.metrics.outside:Brier", "shift": 2.0},
]  # fmt: skip
SCENARIO = scenario_of("fedavg", rounds=3, evaluation={"every": 2, "metrics": METRICS})
SCALARS = {
    "cmi", "gamma", "gamma_kl", "ncmi", "calibration", "macro_f1", "accuracy_gap", "demographic_parity",
    "equalised_odds", "macro_std", "brier",
}  # fmt: skip
VECTORS = {"class_accuracy", "group_accuracy"}


def grouped(split: Split) -> Split:
    """The right and the left half of the ink: a group that a picture of a digit has."""
    left = split.x[..., :4].sum(dim=(1, 2, 3)) > split.x[..., 4:].sum(dim=(1, 2, 3))
    return replace(split, groups=left.long())


@pytest.fixture(scope="module")
def federation() -> Federation:
    built = federation_of(SCENARIO)
    return replace(built, test=grouped(built.test), common_test=built.test[:90], group_names=("right", "left"))


@pytest.fixture(scope="module")
def folder(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured_run(SCENARIO, federation, tmp_path_factory.mktemp("runs") / "measured")


def measured_run(scenario: Scenario, federation: Federation, path: Path) -> Path:
    conduct(scenario, federation, LocalGrid(LocalApp(scenario, federation)), path)
    return path


def read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]:
    return (
        json.loads((folder / "summary.json").read_text()),
        pd.read_parquet(folder / "clients.parquet"),
        pd.read_parquet(folder / "rounds.parquet"),
    )


def final_model(folder: Path, federation: Federation) -> FlatNetwork:
    network = build_model(SCENARIO.model, federation.input_shape, federation.num_classes, SCENARIO.seed)
    model = FlatNetwork(network, torch.device("cpu"))
    found = load_file(folder / "model.safetensors")
    model.theta.copy_(tensor_of(model.layout.join({name: found[name] for name in model.layout.names})))
    return model


def judged(model: FlatNetwork, test: Split, sizes: list[int], federation: Federation) -> dict[str, Any]:
    known = measured(SCENARIO.evaluation.metrics)
    if test.groups is None:
        del known["groups"]
    return evaluate(model, model.theta, test, sizes, known, num_groups=len(federation.group_names))


def test_every_client_s_values_are_those_of_the_final_model(folder: Path, federation: Federation) -> None:
    _, clients, _ = read(folder)
    last = clients[clients["round"] == 3].set_index("client")
    expected = judged(final_model(folder, federation), federation.test, federation.test_sizes.tolist(), federation)
    for name in SCALARS | {"accuracy", "loss"}:
        np.testing.assert_allclose(last[f"test_{name}"], expected[name], rtol=1e-6, atol=1e-9, err_msg=name)
    for name in VECTORS:
        found = np.array(last[f"test_{name}"].tolist())
        np.testing.assert_allclose(found, expected[name], rtol=1e-9, err_msg=name)


def test_pooled_values_are_those_of_all_test_examples_together(folder: Path, federation: Federation) -> None:
    summary, _, rounds = read(folder)
    test = federation.test
    expected = judged(final_model(folder, federation), test, [len(test)], federation)
    last = rounds.set_index("round").loc[3]
    assert set(summary["pooled"]) == SCALARS | VECTORS
    for name in SCALARS | VECTORS:
        np.testing.assert_allclose(last[f"pooled_{name}"], expected[name][0], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(summary["pooled"][name], last[f"pooled_{name}"])


def test_the_common_test_set_is_measured_too_but_for_groups_it_does_not_name(
    folder: Path, federation: Federation
) -> None:
    summary, _, rounds = read(folder)
    assert federation.common_test is not None
    expected = judged(final_model(folder, federation), federation.common_test, [90], federation)
    assert set(summary["central"]) == {name for name in expected if not name.startswith("sums.")}
    assert {"cmi", "class_accuracy", "brier"} <= set(summary["central"])
    assert "group_accuracy" not in summary["central"]
    for name, value in summary["central"].items():
        np.testing.assert_allclose(value, expected[name][0], rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(value, rounds.set_index("round").loc[3, f"central_{name}"])


def test_rounds_without_an_evaluation_have_none(folder: Path) -> None:
    _, clients, rounds = read(folder)
    between = clients[clients["round"] == 1]
    for name in SCALARS | VECTORS:
        assert between[f"test_{name}"].isna().all()
        assert rounds.set_index("round")[f"pooled_{name}"].notna().tolist() == [True, False, True, True]


def test_no_sums_are_stored(folder: Path) -> None:
    _, clients, rounds = read(folder)
    assert not [column for column in (*clients, *rounds) if "sums" in column]


def test_the_spread_over_clients_is_that_of_the_columns(folder: Path) -> None:
    summary, clients, _ = read(folder)
    last = clients[clients["round"] == 3]
    # "brier" is negative here, and the measures of spread are not defined for that.
    names = {"accuracy", "loss", *SCALARS} - {"brier"}
    assert set(summary["fairness"]) == {f"test_{name}" for name in names} | {"improved"}
    for name, higher in (("macro_f1", True), ("ncmi", False)):
        expected = fairness_block(last[f"test_{name}"], last["test_examples"], higher_is_better=higher)
        assert summary["fairness"][f"test_{name}"] == pytest.approx(expected)
        assert (expected["worst_10"] < expected["mean"]) == higher


def test_the_summary_says_what_every_name_means(folder: Path) -> None:
    said = read(folder)[0]["metrics"]
    assert set(said) == {"accuracy", "loss", *SCALARS, *VECTORS}
    assert said["brier"] == {"definition": "Brier score, moved down.", "better": "lower"}


def test_the_resolved_scenario_is_the_same_experiment(folder: Path) -> None:
    assert Scenario.load(folder / "scenario.toml") == SCENARIO
    assert Scenario.load(folder / "scenario.toml").digest() == SCENARIO.digest()


def test_a_model_of_one_s_own_is_measured_in_place_of_the_shared_one(
    federation: Federation, tmp_path: Path
) -> None:
    changes = {"strategy": {"name": "ditto"}, "evaluation": {"metrics": METRICS}, "rounds": 2}
    summary, clients, rounds = read(measured_run(scenario_of("fedavg", **changes), federation, tmp_path / "run"))
    last = clients[clients["round"] == 2]
    own = last["test_cmi"] != last["server_cmi"]
    assert own.any()
    assert {"server_class_accuracy", "server_ncmi"} <= set(last)
    assert "server_macro_f1" in summary["fairness"]
    for column in ("test", "server"):
        by_class = np.array(last[f"{column}_class_accuracy"].tolist())
        assert (by_class[np.isfinite(by_class)] >= 0).all()
    # Pooled values are those of the models that clients use: concavity holds between them.
    pooled = rounds.set_index("round").loc[2, "pooled_cmi"]
    assert pooled >= np.average(last["test_cmi"], weights=last["test_examples"]) - 1e-12


def test_groups_need_a_data_set_that_names_some() -> None:
    with pytest.raises(ScenarioError) as caught:
        build_federation(SCENARIO)
    assert caught.value.problems == (
        "evaluation.metrics.4: groups needs groups, and data set digits names none; leave it out, or take one that "
        "does, such as heart",
    )


def test_the_sexes_of_the_real_hospitals(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(data_root))
    scenario = Scenario.load("heart", ['evaluation.metrics=["groups"]', "rounds=2"])
    federation = build_federation(scenario)
    train, test = federation.train.groups, federation.test.groups
    assert train is not None
    assert test is not None
    # 194 women and 726 men, 79 % of whom are men.
    assert torch.bincount(torch.cat([train, test])).tolist() == [194, 726]
    summary, clients, _ = read(measured_run(scenario, federation, tmp_path / "run"))
    women, men = summary["pooled"]["group_accuracy"]
    shares = np.bincount(test.numpy()) / len(test)
    accuracy = summary["fairness"]["test_accuracy"]["weighted_mean"]
    assert women * shares[0] + men * shares[1] == pytest.approx(accuracy)
    assert summary["pooled"]["macro_std"] == pytest.approx(abs(women - men) / 2)
    assert not math.isnan(clients["test_equalised_odds"].iloc[-4])
