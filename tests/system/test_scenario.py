"""The table [system] in a scenario: every mistake at once, layers, the resolved form, the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.catalogue import lines
from fedsim.errors import DataError, ScenarioError
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, strategy_of
from fedsim.system.availability import Availability
from fedsim.system.availability.day_cycle import DayCycle
from fedsim.system.crowd import Crowd, Moment
from fedsim.system.rates.lognormal import Lognormal
from tests.test_scenario import SMALL, problems_of, write

HOME = Path(__file__).resolve().parents[2]

SYSTEM = """
[server]
clients_per_round = 4
[system]
deadline_s = 60
over_selection = 1.3
dropout = 0.1
[system.availability]
name = "day_cycle"
share = 0.3
[system.speed]
name = "lognormal"
median = 200
sigma = 0.8
[system.partial_work]
name = "uniform"
"""


def load(folder: Path, *overrides: str, text: str = SMALL + SYSTEM) -> Scenario:
    return Scenario.load(write(folder, text), overrides)


def test_a_table_is_read_written_and_read_again(tmp_path: Path) -> None:
    scenario = load(tmp_path)
    assert scenario.system is not None
    assert isinstance(scenario.system.availability, DayCycle)
    assert scenario.system.speed == Lognormal(median=200.0, sigma=0.8)
    assert scenario.system.bandwidth_up is None
    again = Scenario.load(write(tmp_path, scenario.to_toml(), "again.toml"))
    assert again.system == scenario.system
    assert again.table() == scenario.table()
    assert again.digest() == scenario.digest()
    assert scenario.table()["system"]["availability"] == {
        "name": "day_cycle",
        "share": 0.3,
        "period_s": 86400.0,
        "phase_spread": 1.0,
    }


def test_no_table_leaves_no_trace(tmp_path: Path) -> None:
    scenario = load(tmp_path, text=SMALL)
    assert scenario.system is None
    assert "system" not in scenario.table()
    assert scenario.digest() != load(tmp_path).digest()


def test_changes_reach_every_depth_and_another_name_begins_anew(tmp_path: Path) -> None:
    scenario = load(
        tmp_path,
        "system.speed.median=100",
        "system.availability.name=bernoulli",
        "system.availability.p=0.25",
        "system.bandwidth_up.name=uniform",
        "system.bandwidth_up.low=1",
        "system.bandwidth_up.high=2",
    )
    table = scenario.table()["system"]
    assert table["speed"] == {"name": "lognormal", "median": 100.0, "sigma": 0.8}
    assert table["availability"] == {"name": "bernoulli", "p": 0.25, "retry_s": 60.0}
    assert table["bandwidth_up"] == {"name": "uniform", "low": 1.0, "high": 2.0}
    made = load(tmp_path, "system.dropout=0.5", text=SMALL)
    assert made.system is not None
    assert made.system.dropout == 0.5


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = """
        [system]
        deadline = 60
        dropout = 1.0
        over_selection = 0.5
        latency_s = -1
        speed = 100
        bandwidth_up = "constant"
        [system.availability]
        name = "bernouli"
        [system.bandwidth_down]
        name = "uniform"
        low = 3
        high = 2
        [system.partial_work]
        min_share = 0.5
    """
    problems = problems_of(write(tmp_path, SMALL + text))
    assert set(problems) == {
        "system.deadline",
        "system.dropout",
        "system.over_selection",
        "system.latency_s",
        "system.speed",
        "system.bandwidth_up",
        "system.availability",
        "system.bandwidth_down",
        "system.partial_work.name",
    }
    assert (
        'unknown option; did you mean "deadline_s"? system takes availability, speed' in problems["system.deadline"]
    )
    assert "must be less than 1" in problems["system.dropout"]
    assert 'no such availability model "bernouli"; did you mean "bernoulli"?' in problems["system.availability"]
    assert "must be a table with a name, got 100; there are classes, constant" in problems["system.speed"]
    assert 'did you mean system.bandwidth_up.name = "constant"?' in problems["system.bandwidth_up"]
    assert "low must be at most high = 2, got 3" in problems["system.bandwidth_down"]
    assert "missing; there are deadline, uniform" in problems["system.partial_work.name"]
    assert "must be a table, got 3" in problems_of(write(tmp_path, SMALL), "system=3")["system"]


def test_a_gradient_has_no_parts(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL + SYSTEM)
    problem = problems_of(path, "client.local_epochs=0")["system.partial_work"]
    assert "client.local_epochs = 0 sends one full-batch gradient" in problem


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ("over_selection = 1.3", "system.over_selection", "all clients are asked already, must be 1 without"),
        ("deadline_s = 5.0", "system.deadline_s", "nothing takes time, so nobody can be late, got 5"),
        (
            'latency_s = 1.0\npartial_work = {name = "deadline"}',
            "system.partial_work",
            "deadline fits the work to the deadline; set system.deadline_s",
        ),
    ],
)
def test_options_without_effect_are_refused(table: str, key: str, said: str, tmp_path: Path) -> None:
    assert said in problems_of(write(tmp_path, f"{SMALL}[system]\n{table}\n"))[key]


def test_noise_scaled_to_a_number_of_clients_needs_that_number(tmp_path: Path) -> None:
    wrapper = [
        "strategy.name=flwr:DifferentialPrivacyServerSideFixedClipping",
        "strategy.noise_multiplier=0.1",
        "strategy.clipping_norm=1.0",
        "strategy.strategy.name=fedavg",
    ]
    path = write(tmp_path, SMALL)
    with pytest.raises(ScenarioError, match="scales its noise to a fixed number of clients"):
        Scenario.load(path, [*wrapper, "system.dropout=0.1"])
    complete = Scenario.load(path, [*wrapper, "system.latency_s=1.0"])
    assert complete.system is not None
    assert complete.system.complete


def test_a_trace_that_cannot_be_used_fails_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path))
    scenario = load(tmp_path, "system.speed.name=trace", "system.speed.path=devices.csv")
    with pytest.raises(DataError, match=r"devices\.csv: cannot be read: No such file"):
        build_federation(scenario)
    rows = "".join(f"{client},{client + 1}\n" for client in range(8))
    (tmp_path / "devices.csv").write_text(f"client,speed\n{rows}")
    federation = build_federation(scenario)
    system = strategy_of(scenario, federation).system
    assert system is not None
    seconds = [system.begin(1, [client], 1, 1, 1) for client in range(8)]
    assert all(plan.parts or plan.seconds > 0 for plan in seconds)
    (tmp_path / "devices.csv").write_text("client,speed\n0,-1\n")
    with pytest.raises(DataError, match="line 2: speed must be greater than 0, got -1"):
        build_federation(scenario)


def test_list_shows_the_table_and_what_it_can_name() -> None:
    table = "\n".join(lines("system"))
    assert "over_selection = 1.0" in table
    assert "availability.name: always, bernoulli, day_cycle, trace" in table
    assert any(line.startswith("day_cycle") for line in lines("availability"))
    assert any("median = (has to be given)" in line for line in lines("lognormal"))
    assert any(line == "partial_work:" for line in lines())


def test_the_bundled_scenario_has_devices() -> None:
    scenario = Scenario.load("mnist_devices")
    assert scenario.system is not None
    assert scenario.system.over_selection == 1.3


def test_the_example_of_a_model_of_ones_own_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (HOME / "CONTRIBUTING.md").read_text()
    code = guide.split('```python\n"""Week ends')[1].split("```")[0]
    (tmp_path / "weekly.py").write_text(f'"""Week ends{code}')
    monkeypatch.syspath_prepend(tmp_path)
    scenario = load(tmp_path, "system.availability.name=weekly:WeekEnds")
    assert scenario.system is not None
    model: Any = scenario.system.availability
    assert isinstance(model, Availability)
    assert (model.remaining(Moment(Crowd(0, 3), 1, 86400.0)) == 86400.0).all()
    assert not model.remaining(Moment(Crowd(0, 3), 1, 3 * 86400.0)).any()
    assert model.wait(Moment(Crowd(0, 3), 1, 3 * 86400.0)) == 4 * 86400.0
    assert scenario.table()["system"]["availability"] == {"name": "weekly:WeekEnds"}
    system = strategy_of(scenario, build_federation(scenario)).system
    assert system is not None
    assert np.isfinite(system.begin(1, list(range(8)), 4, 1, 1).seconds)
