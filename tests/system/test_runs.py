"""Whole runs with a table [system]: every rule, what is recorded, the same bits anywhere, rounds of nobody."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from clients.app import LocalApp
from clients.batches import num_steps
from fedsim import plugins, server_app
from fedsim.engine.flower import give_id
from fedsim.engine.local import LocalGrid
from fedsim.errors import RoundError
from fedsim.federation import Federation
from fedsim.scenario import Scenario
from fedsim.server_app import conduct, strategy_of
from fedsim.wire import unpack_arrays
from strategies.seeded import SeededStrategy
from tests.test_determinism import workers
from tests.test_every_rule import start

__all__ = ["workers"]  # a fixture

RULES = plugins.names("strategies.rules")
FLOWERS: dict[str, dict[str, Any]] = {
    "flwr:FedAvg": {},
    "flwr:FedAdam": {"eta": 0.01},
    "flwr:FedProx": {"proximal_mu": 0.1},
    "flwr:QFedAvg": {"q": 0.5},
    "flwr:FedMedian": {},
    "flwr:MultiKrum": {"num_malicious_nodes": 0, "num_nodes_to_select": 2},
}
NUM_CLIENTS = 9

BASE: dict[str, Any] = {
    "name": "small",
    "rounds": 8,
    "seed": 3,
    "data": {"name": "digits", "limit": 500},
    "partition": {"name": "dirichlet", "num_clients": NUM_CLIENTS, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [12]},
    "client": {"batch_size": 8, "lr": 0.05, "local_epochs": 2},
    "server": {"clients_per_round": 5},
    "evaluation": {"every": 4},
}
HARSH: dict[str, Any] = {
    "deadline_s": 20.0,
    "over_selection": 1.4,
    "dropout": 0.25,
    "latency_s": 0.1,
    "availability": {"name": "day_cycle", "share": 0.45, "period_s": 150.0},
    "speed": {"name": "lognormal", "median": 10.0, "sigma": 0.8},
    "bandwidth_down": {"name": "constant", "value": 0.05},
    "bandwidth_up": {"name": "uniform", "low": 0.01, "high": 0.05},
    "partial_work": {"name": "uniform", "min_share": 0.2},
}
"""Under which some rounds have nobody, and some have answers of a few."""


def scenario_of(rule: str, system: Any = HARSH, **changes: Any) -> Scenario:
    table = {**BASE, "strategy": {"name": rule, **FLOWERS.get(rule, {})}, **changes}
    return Scenario.of(table if system is None else {**table, "system": system})


@pytest.fixture(scope="module")
def federation() -> Federation:
    scenario = scenario_of("fedavg")
    return Federation.build(scenario.data, scenario.partition, scenario.seed, Path())


class Run:
    """A run and what it left."""

    def __init__(
        self, scenario: Scenario, federation: Federation, folder: Path, grid: Any = None, *, report: bool = False
    ) -> None:
        app = LocalApp(scenario, federation)
        self.scenario = app.scenario
        models: list[Any] = []

        def keep(finished: Any) -> None:
            models.append(unpack_arrays(finished.arrays))

        with pytest.MonkeyPatch.context() as patch:
            if not report:  # drawing takes longer than the run
                patch.setattr(server_app, "write_report", lambda path: path)
                patch.setattr(server_app, "save_partition_figure", lambda path: path)
            self.summary = conduct(app.scenario, federation, grid or LocalGrid(app), folder, callbacks=[keep])
        self.models = models
        self.rounds = pd.read_parquet(folder / "rounds.parquet").set_index("round")
        self.clients = pd.read_parquet(folder / "clients.parquet")
        self.written = json.loads((folder / "summary.json").read_text())

    def asked(self) -> pd.DataFrame:
        return self.clients[self.clients["work"].notna()]


@pytest.mark.parametrize("rule", [*RULES, *FLOWERS])
def test_every_rule_lives_with_devices(rule: str, federation: Federation, tmp_path: Path) -> None:
    run = Run(scenario_of(rule), federation, tmp_path / "run")
    assert run.written["status"] == "finished"
    rounds, asked = run.rounds, run.asked()
    assert (rounds["num_sampled"] < 5).any()
    assert (rounds["num_sampled"] <= 5).all()
    assert (rounds["num_failures"] == 0).all()
    assert np.diff(rounds["simulated_time"]) == pytest.approx(rounds["simulated_seconds"].to_numpy()[1:])
    assert (asked["sampled"] == asked["lost"].isna()).all()
    assert run.clients["sampled"].sum() == asked["sampled"].sum()
    for number, row in rounds.iterrows():
        here = asked[asked["round"] == number]
        assert row["num_selected"] == len(here)
        assert row["num_sampled"] == here["sampled"].sum()
        assert row["bytes_down"] == here["bytes_down"].sum()
        assert row["bytes_up"] == here["bytes_up"].sum()
        assert row["num_dropped"] == here["lost"].isin(["dropped", "left"]).sum()
        assert row["num_late"] == (here["lost"] == "late").sum()
    trained = asked[asked["sampled"]]
    for _, row in trained.iterrows():
        assert row["steps"] == num_steps(int(row["train_examples"]), 8, 2, row["work"])
    assert trained["work"].min() < 0.6
    assert np.isfinite(np.concatenate([value.reshape(-1) for value in run.models[-1].values()])).all()
    assert run.summary["system"]["bytes_up"] == rounds["bytes_up"].sum()
    assert run.summary["system"]["simulated_time"] == rounds["simulated_time"].iloc[-1]


def test_a_system_in_which_nothing_happens_changes_no_bit(federation: Federation, tmp_path: Path) -> None:
    calm = {"speed": {"name": "lognormal", "median": 5.0}, "bandwidth_up": {"name": "constant", "value": 1.0}}
    for rule in ("fedavg", "adafed", "scaffold", "flwr:FedAdam", "flwr:MultiKrum"):
        digests = []
        for name, system in (("none", None), ("empty", {}), ("calm", calm)):
            run = Run(scenario_of(rule, system, rounds=3), federation, tmp_path / f"{rule}-{name}")
            digests.append(run.summary["model_sha256"])
            assert ("simulated_time" in run.rounds) == ("lost" in run.clients) == (system is not None)
            assert ("system" in run.written) == (system is not None)
        assert digests[0] == digests[1] == digests[2]


def test_methods_under_one_seed_meet_the_same_devices(federation: Federation, tmp_path: Path) -> None:
    system = {
        **HARSH,
        "bandwidth_down": {"name": "constant", "value": 1e6},
    }  # what a rule sends along takes no time
    columns = ["round", "client", "work", "lost", "system_seconds", "bytes_up"]
    tables = [
        Run(scenario_of(rule, system), federation, tmp_path / rule).asked()[columns].reset_index(drop=True)
        for rule in ("fedavg", "adafed", "scaffold", "flwr:FedMedian")
    ]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(other, tables[0], rtol=1e-4)  # but for a microsecond
    scenario = scenario_of("fedavg", system, seed=4)
    other_seed = Run(scenario, federation, tmp_path / "seed").asked()[columns].reset_index(drop=True)
    assert not other_seed.equals(tables[0])


def test_a_second_run_is_the_same_bits(federation: Federation, tmp_path: Path) -> None:
    one, other = (Run(scenario_of("adafed"), federation, tmp_path / name) for name in ("one", "other"))
    assert one.summary["model_sha256"] == other.summary["model_sha256"]
    clocks = [name for name in one.rounds if name.startswith("seconds")]
    pd.testing.assert_frame_equal(one.rounds.drop(columns=clocks), other.rounds.drop(columns=clocks))
    pd.testing.assert_frame_equal(one.clients, other.clients)


@pytest.mark.slow
@pytest.mark.parametrize("cohort", ["each", "stacked"])
def test_two_workers_give_the_bits_of_one_process(
    cohort: str, workers: Any, federation: Federation, tmp_path: Path
) -> None:
    client = {**BASE["client"], "cohort": cohort, "block_size": 2}
    for rule in ("fedavg", "ditto", "scaffold"):
        scenario = scenario_of(rule, client=client)
        here = Run(scenario, federation, tmp_path / f"{rule}-here")
        grid = workers(LocalApp(scenario, federation), 2)
        there = Run(scenario, federation, tmp_path / f"{rule}-there", grid)
        assert here.summary["model_sha256"] == there.summary["model_sha256"]
        pd.testing.assert_frame_equal(here.clients, there.clients)


def test_blocks_and_one_after_the_other_give_the_same_numbers(federation: Federation, tmp_path: Path) -> None:
    runs = {}
    for cohort in ("each", "stacked"):
        client = {**BASE["client"], "cohort": cohort, "momentum": 0.5}
        runs[cohort] = Run(scenario_of("adafed", client=client), federation, tmp_path / cohort)
    blocks = runs["stacked"].clients.pop("block")
    assert blocks.max() > 1
    pd.testing.assert_frame_equal(runs["stacked"].clients, runs["each"].clients, rtol=1e-2, atol=1e-3)


class Renamed:
    """A grid whose nodes have the ids that Flower draws: large, in no order of the clients."""

    def __init__(self, grid: LocalGrid, count: int) -> None:
        ids = np.random.default_rng(0).integers(2**40, 2**62, count)
        self._grid, self._places = grid, {int(node): place + 1 for place, node in enumerate(ids)}
        self.asked: list[str] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self._places)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        sent = list(messages)
        self.asked += [message.metadata.message_type for message in sent]
        inner = [
            Message(
                m.content, dst_node_id=self._places[m.metadata.dst_node_id], message_type=m.metadata.message_type
            )
            for m in sent
        ]
        replies = self._grid.send_and_receive(inner, timeout=timeout)
        found = []
        for message, reply in zip(sent, replies, strict=True):
            give_id(message)
            found.append(Message(reply.content, reply_to=message))
        return found


@pytest.mark.parametrize("rule", ["fedavg", "flwr:FedAvg"])
def test_nodes_of_flower_are_known_by_the_client_they_stand_for(
    rule: str, federation: Federation, tmp_path: Path
) -> None:
    scenario = scenario_of(rule)
    ours = Run(scenario, federation, tmp_path / "ours")
    grid = Renamed(LocalGrid(LocalApp(scenario, federation)), NUM_CLIENTS)
    flowers = Run(scenario, federation, tmp_path / "flowers", cast(Grid, grid))
    columns = ["round", "client", "sampled", "steps", "work", "lost", "system_seconds", "bytes_down"]
    pd.testing.assert_frame_equal(flowers.clients[columns], ours.clients[columns])
    assert flowers.summary["model_sha256"] == ours.summary["model_sha256"]
    assert grid.asked.count("evaluate") == 4 * NUM_CLIENTS  # three evaluations, and one to learn who is who


def one_round(strategy: SeededStrategy, number: int, arrays: ArrayRecord, grid: LocalGrid) -> ArrayRecord:
    messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages)) if messages else []
    after, _ = strategy.aggregate_train(number, replies)
    assert after is not None
    return after


def same(one: ArrayRecord, other: ArrayRecord) -> bool:
    first, second = unpack_arrays(one), unpack_arrays(other)
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rule", ["fedavg", "fedadam", "feddyn", "flwr:FedAdam", "flwr:MultiKrum"])
@pytest.mark.parametrize("why", ["nobody", "lost", "late"])
def test_a_round_of_nobody_leaves_the_model_and_costs_its_time(rule: str, why: str, federation: Federation) -> None:
    system = {
        "nobody": {"availability": {"name": "bernoulli", "p": 1e-9, "retry_s": 7.0}},
        "lost": {"speed": {"name": "constant", "value": 1.0}, "dropout": 1 - 1e-12},
        "late": {"speed": {"name": "constant", "value": 1.0}, "deadline_s": 7.0},
    }[why]
    scenario = scenario_of(rule, system)
    strategy, grid = strategy_of(scenario, federation), LocalGrid(LocalApp(scenario, federation))
    arrays = start(scenario, federation)
    memory = repr(getattr(strategy, "memory", None))
    for number in (1, 2, 3):
        assert strategy.system is not None
        before = strategy.system.time_s
        assert same(one_round(strategy, number, arrays, grid), arrays)
        plan = strategy.last.system
        assert plan is not None
        assert not plan.counted
        assert plan.num_available == (0 if why == "nobody" else NUM_CLIENTS)
        assert {part.lost for part in plan.parts} == {"nobody": set(), "lost": {"dropped"}, "late": {"late"}}[why]
        assert plan.seconds > 0 if why == "lost" else plan.seconds == 7.0
        assert strategy.system.memory == {"time_s": before + plan.seconds}
    assert repr(getattr(strategy, "memory", None)) == memory


def test_an_empty_round_between_others_is_in_the_tables(federation: Federation, tmp_path: Path) -> None:
    system = {"availability": {"name": "bernoulli", "p": 0.08, "retry_s": 30.0}}
    run = Run(scenario_of("adafed", system, rounds=12), federation, tmp_path / "run", report=True)
    empty = run.rounds.index[(run.rounds["num_sampled"] == 0) & (run.rounds.index > 0)].tolist()
    assert 1 < len(empty) < 11
    for number in range(1, 13):
        before, after = run.models[number - 1], run.models[number]
        assert all(np.array_equal(before[name], after[name]) for name in before) == (number in empty)
    assert (run.rounds.loc[empty, "simulated_seconds"] == 30.0).all()
    assert run.rounds.loc[empty, "mean_loss"].isna().all()
    assert run.summary["system"]["rounds_without_answers"] == len(empty)
    assert (tmp_path / "run" / "report.html").is_file()


def test_too_few_for_krum_is_a_round_of_nobody(federation: Federation, tmp_path: Path) -> None:
    system = {"availability": {"name": "bernoulli", "p": 0.35}}
    run = Run(scenario_of("flwr:MultiKrum", system, rounds=12), federation, tmp_path / "run")
    few = (run.rounds["num_selected"] < 3) & (run.rounds["num_selected"] > 0)  # it needs three
    assert few.any()
    assert (run.rounds.loc[few, "num_sampled"] == 0).all()
    assert (run.rounds.loc[~few, "num_sampled"] == run.rounds.loc[~few, "num_selected"]).all()
    lost = run.clients[run.clients["round"].isin(run.rounds.index[few])]
    assert set(lost["lost"].dropna()) == {"too few"}
    assert (lost["lost"].notna() == lost["bytes_down"].notna()).all()


def test_what_a_rule_sends_along_and_asks_again_is_counted(federation: Federation, tmp_path: Path) -> None:
    calm = {"bandwidth_down": {"name": "constant", "value": 0.1}, "latency_s": 0.25}
    size = 4 * (64 * 12 + 12 + 12 * 10 + 10)
    plain = Run(scenario_of("fedavg", calm), federation, tmp_path / "fedavg")
    assert (plain.rounds["bytes_down"].iloc[1:] == 5 * size).all()
    assert (plain.rounds["bytes_up"].iloc[1:] == 5 * size).all()
    assert plain.rounds["simulated_seconds"].iloc[1:].to_numpy() == pytest.approx(0.25 + size * 8e-6 / 0.1)
    control = Run(scenario_of("scaffold", calm), federation, tmp_path / "scaffold")
    assert control.rounds["bytes_down"].iloc[1] == 5 * size  # there is no variate yet
    assert (control.rounds["bytes_down"].iloc[2:] == 2 * 5 * size).all()
    assert (control.rounds["bytes_up"].iloc[1:] == 5 * size).all()
    search = Run(scenario_of("fedmdfg", calm), federation, tmp_path / "fedmdfg")
    for _, row in search.rounds.iloc[1:].iterrows():
        trials = row["num_trials"]
        assert trials >= 1
        assert row["bytes_down"] == (1 + trials) * 5 * size
        assert row["bytes_up"] == 5 * (size + 4 * trials)
        assert row["simulated_seconds"] == pytest.approx((1 + trials) * (0.25 + size * 8e-6 / 0.1))
    assert search.rounds["num_trials"].max() > 1


def test_a_personal_model_takes_its_time(federation: Federation) -> None:
    system = {"speed": {"name": "constant", "value": 10.0}}
    seconds = {}
    for rule, options in {"fedavg": {}, "ditto": {}, "ditto 3": {"personal_epochs": 3}}.items():
        table = {**BASE, "strategy": {"name": rule.split()[0], **options}, "system": system}
        strategy = strategy_of(Scenario.of(table), federation)
        assert strategy.system is not None
        plan = strategy.system.begin(1, [0, 1, 2], 3, 1, 1)
        seconds[rule] = [part.seconds for part in plan.parts]
    assert np.array(seconds["ditto"]) == pytest.approx(2 * np.array(seconds["fedavg"]))
    assert np.array(seconds["ditto 3"]) == pytest.approx(2.5 * np.array(seconds["fedavg"]))


def test_a_strategy_needs_the_federation_of_a_system(federation: Federation) -> None:
    with pytest.raises(AssertionError, match="needs to know the clients' data"):
        strategy_of(scenario_of("fedavg"))
    assert strategy_of(scenario_of("fedavg", None)).system is None


def test_a_node_that_does_not_say_who_it_is_stops_the_run(federation: Federation) -> None:
    scenario = scenario_of("fedavg")
    strategy, local = strategy_of(scenario, federation), LocalGrid(LocalApp(scenario, federation))

    class Silent(Renamed):
        def send_and_receive(
            self,
            messages: Iterable[Message],  # noqa: ARG002
            *,
            timeout: float | None = None,  # noqa: ARG002
        ) -> list[Message]:
            return []

    strategy.remember(start(scenario, federation))
    with pytest.raises(RoundError, match=r"node \d+ does not say which client it is, and \[system\] knows"):
        strategy.draw(1, cast(Grid, Silent(local, NUM_CLIENTS)))


def test_an_update_of_a_partial_client_travels_as_it_is(federation: Federation) -> None:
    """The server's words reach the client: fewer steps, another update; those with a whole share are left alone."""
    system = {"partial_work": {"name": "uniform", "min_share": 0.1}}
    updates: dict[str, dict[int, Any]] = {}
    partial: dict[int, float] = {}
    for name, table in (("partial", system), ("whole", None)):
        scenario = scenario_of("fedavg", table)
        strategy, grid = strategy_of(scenario, federation), LocalGrid(LocalApp(scenario, federation))
        messages = list(strategy.configure_train(1, start(scenario, federation), ConfigRecord(), grid))
        updates[name] = {
            reply.metadata.src_node_id - 1: unpack_arrays(cast(ArrayRecord, reply.content["update"]))["update"]
            for reply in grid.send_and_receive(messages)
        }
        if strategy.system is not None:
            partial = strategy.system.plan.shares
    assert updates["partial"].keys() == updates["whole"].keys()
    assert 1 < len(partial) < 5
    for client, update in updates["partial"].items():
        assert np.array_equal(update, updates["whole"][client]) == (client not in partial)
