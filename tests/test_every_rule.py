"""Every rule of the folder on real clients: partial participation, state by client number, restored memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message

from clients.app import LocalApp
from fedsim import checkpoint, plugins
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.models._check import build_model
from fedsim.parameters import Layout
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import AnyRule, MemoryRule

RULES = plugins.names("strategies.rules")
REMEMBERING = [n for n in RULES if issubclass(plugins.find("strategies.rules", n, AnyRule), MemoryRule)]
NUM_ROUNDS = 6


def scenario_of(rule: str, **strategy: Any) -> Scenario:
    return Scenario.of(
        {
            "name": "small",
            "rounds": NUM_ROUNDS,
            "data": {"name": "digits", "limit": 600},
            "partition": {"name": "dirichlet", "num_clients": 8, "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [16]},
            "client": {"batch_size": 16, "lr": 0.1},
            "strategy": {"name": rule, **strategy},
            "server": {"clients_per_round": 3},
        }
    )


@pytest.fixture(scope="module")
def federation() -> Federation:
    scenario = scenario_of("fedavg")
    return Federation.build(scenario.data, scenario.partition, scenario.seed, Path())


def start(scenario: Scenario, federation: Federation) -> ArrayRecord:
    network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
    return pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})


def flat(arrays: ArrayRecord) -> np.ndarray:
    named = unpack_arrays(arrays)
    return Layout.of(named).join(named)


def leaves(memory: Any) -> int:
    """Numbers and tensors in a memory."""
    return sum(map(leaves, memory.values())) if isinstance(memory, dict) else 1


def one_round(strategy: RuleStrategy, number: int, arrays: ArrayRecord, grid: LocalGrid) -> ArrayRecord:
    messages: list[Message] = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
    assert len(messages) == 3
    after, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert after is not None
    return after


def mean_loss(arrays: ArrayRecord, strategy: RuleStrategy, grid: LocalGrid) -> float:
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    record = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert record is not None
    return float(record["test_loss"])  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", RULES)
def test_a_few_rounds_on_real_data_lower_the_loss_over_all_clients(rule: str, federation: Federation) -> None:
    scenario = scenario_of(rule)
    strategy = strategy_of(scenario)
    assert isinstance(strategy, RuleStrategy)
    grid = LocalGrid(LocalApp(scenario, federation))
    arrays = start(scenario, federation)
    before = mean_loss(arrays, strategy, grid)
    for number in range(1, NUM_ROUNDS + 1):
        arrays = one_round(strategy, number, arrays, grid)
    assert mean_loss(arrays, strategy, grid) < 0.97 * before


@pytest.mark.parametrize("rule", REMEMBERING)
def test_a_memory_read_from_a_file_after_every_round_changes_no_bit(
    rule: str, federation: Federation, tmp_path: Path
) -> None:
    scenario = scenario_of(rule, **({"tau": 2, "external": "absent"} if rule == "fedfv" else {}))
    through, grid = strategy_of(scenario), LocalGrid(LocalApp(scenario, federation))
    again = LocalGrid(LocalApp(scenario, federation))
    arrays = restarted = start(scenario, federation)
    remembered = 0
    for number in range(1, NUM_ROUNDS + 1):
        assert isinstance(through, RuleStrategy)
        arrays = one_round(through, number, arrays, grid)
        fresh = strategy_of(scenario)
        assert isinstance(fresh, RuleStrategy)
        if number > 1:
            fresh.memory = checkpoint.load(tmp_path / "memory.safetensors")
        restarted = one_round(fresh, number, restarted, again)
        checkpoint.save(tmp_path / "memory.safetensors", fresh.memory)
        remembered += leaves(fresh.memory)
        assert np.array_equal(flat(restarted), flat(arrays)), f"round {number}"
    assert remembered > 0 or rule == "dqnfed"  # with local steps DQN-Fed keeps nothing


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_answers_for_few_clients_and_many_rounds(rule: str, federation: Federation) -> None:
    """One client a round: K = 1 inside a federation of eight."""
    scenario = scenario_of(rule)
    strategy = strategy_of(
        scenario.model_copy(update={"server": scenario.server.model_copy(update={"clients_per_round": 1})})
    )
    grid = LocalGrid(LocalApp(scenario, federation))
    arrays = start(scenario, federation)
    for number in range(1, 4):
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        assert len(messages) == 1
        after, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert after is not None
        arrays = after
    assert np.isfinite(flat(arrays)).all()


@pytest.mark.parametrize("rule", [*RULES, "flwr:FedAvg", "flwr:QFedAvg", "flwr:FedProx", "flwr:FedMedian"])
def test_losses_that_a_rule_does_not_read_can_be_left_out(rule: str, federation: Federation) -> None:
    """The same model without them; those it reads are there all the same."""
    strategies = {"flwr:FedProx": {"proximal_mu": 0.1}}
    models = []
    for losses in ("exact", "needed"):
        scenario = scenario_of(rule, **strategies.get(rule, {}))
        client = scenario.client.model_copy(update={"losses": losses})
        scenario = scenario.model_copy(update={"client": client})
        strategy, grid = strategy_of(scenario), LocalGrid(LocalApp(scenario, federation))
        arrays = start(scenario, federation)
        for number in (1, 2):
            messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
            replies = grid.send_and_receive(messages)
            after, _ = strategy.aggregate_train(number, replies)
            assert after is not None
            arrays = after
        models.append(flat(arrays))
    np.testing.assert_array_equal(*models)
