"""Same seed, same bits: whatever engine trains the clients, and however many workers it has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clients.app import LocalApp
from fedsim.engine.base import BlockGrid
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.models._check import build_model
from fedsim.rounds import run_rounds
from fedsim.run_folder import RunFolder
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.settings import EngineSettings
from fedsim.wire import pack_arrays

BASE = {
    "name": "small",
    "rounds": 4,
    "seed": 3,
    "data": {"name": "digits", "limit": 600},
    "partition": {"name": "dirichlet", "num_clients": 8, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [24]},
    "client": {"batch_size": 16, "lr": 0.05},
    "server": {"clients_per_round": 5},
}
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "adafed": {"name": "adafed"},
    "dqnfed": {"name": "dqnfed", "pairs_from": "rounds"},  # clients keep a state
}


HOOKED: dict[str, Any] = {
    "batch_size": 16,
    "lr": 0.05,
    "momentum": 0.5,
    "augment": "crop_flip",
    "hooks": [{"name": "fed_it", "decay": 0.9}, {"name": "cmim"}, {"name": "pgd", "steps": 2}],
}
"""Hooks that keep a memory and draw random numbers."""

MEASURED = ["cmi", "calibration", "macro_f1", "class_accuracy"]


class SmallGroups(Federation):
    """Evaluates in several streams, as a larger federation would."""

    def evaluation_groups(self, max_examples: int) -> list[range]:  # noqa: ARG002
        return super().evaluation_groups(40)


def scenario_of(rule: str, **changes: Any) -> Scenario:
    return Scenario.of({**BASE, "strategy": RULES[rule], **changes})


def federation_of(scenario: Scenario) -> Federation:
    built = Federation.build(scenario.data, scenario.partition, scenario.seed, Path())
    small = SmallGroups(**{field.name: getattr(built, field.name) for field in fields(built)})
    assert 1 < len(small.evaluation_groups(0)) < small.num_clients
    return small


def run(scenario: Scenario, federation: Federation, grid: BlockGrid, folder: Path) -> dict[str, Any]:
    """The summary and tables of a run, without what a clock says."""
    network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
    kept = RunFolder(folder, scenario, federation)
    arrays = pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})
    run_rounds(strategy_of(scenario), grid, arrays, num_rounds=scenario.rounds, callbacks=[kept])
    kept.close("finished")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("seconds")["total"] > 0
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("clients", "rounds")}
    for name, table in tables.items():
        clocks = [column for column in table.columns if column.startswith("seconds")]
        assert bool(clocks) == (name == "rounds")
        tables[name] = table.drop(columns=clocks)
    return {"summary": summary, **tables}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["summary"]["model_sha256"] == expected["summary"]["model_sha256"]
    for name in ("clients", "rounds"):
        pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True)
    assert found["summary"] == expected["summary"]


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[Any]:
    """One Ray grid of three workers that can be given another application and fewer workers: they start slowly."""
    from fedsim.engine.grid import RayGrid

    scenario = scenario_of("fedavg")
    grid = RayGrid(LocalApp(scenario, federation_of(scenario)), EngineSettings(workers=3))
    every = list(grid._crew.members)

    def use(app: LocalApp, count: int) -> RayGrid:
        grid._crew.members[:] = every
        grid.change(app)
        grid._crew.members[:] = every[:count]
        return grid

    yield use
    grid._crew.members[:] = every
    grid.close()


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_any_number_of_workers_gives_the_bits_of_one_process(rule: str, workers: Any, tmp_path: Path) -> None:
    scenario = scenario_of(rule)
    federation = federation_of(scenario)
    expected = run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), tmp_path / "local")
    assert expected["clients"]["sampled"].sum() == 4 * 5
    if rule == "dqnfed":
        assert expected["clients"]["pairs"].max() > 0  # states did come back
    for count in (1, 2, 3):
        app = LocalApp(scenario, federation)
        assert_same(run(scenario, federation, workers(app, count), tmp_path / str(count)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("cohort", [{"cohort": "each"}, {"cohort": "stacked", "block_size": 2}], ids=str)
def test_hooks_and_blocks_are_the_same_bits_on_any_number_of_workers(
    cohort: dict[str, Any], workers: Any, tmp_path: Path
) -> None:
    scenario = scenario_of("fedavg", rounds=3, client={**HOOKED, **cohort})
    federation = federation_of(scenario)
    app = LocalApp(scenario, federation)
    blocks = app.units("train", [6, 1, 4, 3, 0])
    assert [len(block) for block in blocks] == ([2, 2, 1] if "block_size" in cohort else [1] * 5)
    expected = run(scenario, federation, LocalGrid(app), tmp_path / "local")
    assert expected["clients"]["fed_it_concentration"].max() > 0
    for count in (1, 2, 3):
        found = workers(LocalApp(scenario, federation), count)
        assert_same(run(scenario, federation, found, tmp_path / str(count)), expected)


def test_one_client_after_the_other_and_blocks_give_the_same_numbers(tmp_path: Path) -> None:
    def once(cohort: str) -> dict[str, Any]:
        scenario = scenario_of("adafed", client={**HOOKED, "cohort": cohort})
        federation = federation_of(scenario)
        return run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), tmp_path / cohort)

    each, stacked = once("each"), once("stacked")
    together = stacked["clients"].pop("block")
    assert set(together.dropna()) <= {2.0, 3.0}  # the five clients of a round, in halves
    pd.testing.assert_frame_equal(stacked["clients"], each["clients"], rtol=1e-2, atol=1e-3)
    # To rounding only: were the bits the same too, one of the two would not have been used.
    assert each["summary"]["model_sha256"] != stacked["summary"]["model_sha256"]


@pytest.mark.slow
def test_metrics_are_the_same_bits_on_any_number_of_workers(workers: Any, tmp_path: Path) -> None:
    scenario = scenario_of("fedavg", rounds=2, evaluation={"metrics": MEASURED})
    federation = federation_of(scenario)
    expected = run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), tmp_path / "local")
    assert expected["rounds"]["pooled_cmi"].notna().all()
    for count in (1, 3):
        app = LocalApp(scenario, federation)
        assert_same(run(scenario, federation, workers(app, count), tmp_path / str(count)), expected)


@pytest.mark.parametrize("rule", RULES)
def test_a_second_run_gives_the_same_bits_and_another_seed_others(rule: str, tmp_path: Path) -> None:
    def once(name: str, **changes: Any) -> dict[str, Any]:
        scenario = scenario_of(rule, **changes)
        federation = federation_of(scenario)
        return run(scenario, federation, LocalGrid(LocalApp(scenario, federation)), tmp_path / name)

    first = once("first")
    assert_same(once("second"), first)
    assert once("other", seed=4)["summary"]["model_sha256"] != first["summary"]["model_sha256"]
    # A partition of its own seed stays; only the run's randomness changes.
    fixed = {**BASE["partition"], "seed": 3}  # type: ignore[dict-item]
    other = once("fixed", seed=4, partition=fixed)["summary"]
    assert other["partition_sha256"] == first["summary"]["partition_sha256"]
    assert other["model_sha256"] != first["summary"]["model_sha256"]


def test_evaluating_some_clients_gives_the_same_bits_as_evaluating_all() -> None:
    """A worker that has half of a group goes through the whole group's stream."""
    from flwr.app import ConfigRecord, Message

    from fedsim.wire import pack_request, read

    scenario = scenario_of("fedavg", evaluation={"metrics": MEASURED})
    federation = federation_of(scenario)
    network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
    arrays = pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})
    records = pack_request(arrays, ConfigRecord(), 0, wants_update=False)
    grid = LocalGrid(LocalApp(scenario, federation))

    def evaluate(nodes: list[int]) -> dict[int, dict[str, Any]]:
        sent = [Message(records, dst_node_id=node, message_type="evaluate") for node in nodes]
        answers = list(map(read, grid.send_and_receive(sent)))
        assert all("sums.cmi" in answer.vectors for answer in answers)
        return {
            answer.client: {**answer.numbers, **{name: repr(v.tolist()) for name, v in answer.vectors.items()}}
            for answer in answers
        }

    every = evaluate(grid.get_node_ids())
    for nodes in ([3], [8, 1], [2, 4, 6]):
        assert evaluate(nodes) == {client: every[client] for client in (node - 1 for node in nodes)}


def test_initial_weights_depend_on_the_seed_alone() -> None:
    scenario = scenario_of("fedavg")
    first, second, third = (build_model(scenario.model, (1, 8, 8), 10, seed) for seed in (3, 3, 4))
    pairs = list(zip(first.parameters(), second.parameters(), third.parameters(), strict=True))
    assert all(bool((a == b).all()) for a, b, _ in pairs)
    assert any(bool((a != c).any()) for a, _, c in pairs)
