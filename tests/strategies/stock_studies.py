"""Flower's own strategies by name, runs of them, and rounds of crafted replies."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients.app import LocalApp
from fedsim.engine.base import BlockGrid
from fedsim.engine.flower import give_id
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.models._check import build_model
from fedsim.parameters import Layout
from fedsim.rounds import Round, run_rounds
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.stock import StockStrategy
from strategies.stock_options import StockOptions
from tests.strategies.replies import WEIGHTS, flat, grid_of, numbers
from tests.test_determinism import BASE

FIXED = "flwr:DifferentialPrivacyServerSideFixedClipping"


ADAPTIVE = "flwr:DifferentialPrivacyServerSideAdaptiveClipping"


NAMED: dict[str, dict[str, Any]] = {
    "FedAvg": {"name": "flwr:FedAvg"},
    "FedAvgM": {"name": "flwr:FedAvgM", "server_momentum": 0.5},
    "FedAdam": {"name": "flwr:FedAdam", "eta": 0.01},
    "FedYogi": {"name": "flwr:FedYogi"},
    "FedAdagrad": {"name": "flwr:FedAdagrad", "eta": 0.01},
    "FedMedian": {"name": "flwr:FedMedian"},
    "FedTrimmedAvg": {"name": "flwr:FedTrimmedAvg", "beta": 0.25},
    "FedProx": {"name": "flwr:FedProx", "proximal_mu": 1.0},
    "QFedAvg": {"name": "flwr:QFedAvg", "q": 0.5},
    "Krum": {"name": "flwr:Krum", "num_malicious_nodes": 1},
    "MultiKrum": {"name": "flwr:MultiKrum", "num_malicious_nodes": 1, "num_nodes_to_select": 2},
    "Bulyan": {"name": "flwr:Bulyan"},
    "DP fixed": {"name": FIXED, "noise_multiplier": 0.1, "clipping_norm": 1.0, "strategy": {"name": "flwr:FedAvg"}},
    "DP adaptive": {
        "name": ADAPTIVE,
        "noise_multiplier": 0.1,
        "strategy": {"name": "flwr:FedAvgM", "server_momentum": 0.5},
    },
    "DP around ours": {
        "name": ADAPTIVE,
        "noise_multiplier": 0.1,
        "strategy": {"name": "adafed", "gamma": 0.5},
    },
}


REMEMBERING = ("FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "DP adaptive")


def scenario_of(strategy: Mapping[str, Any], **changes: Any) -> Scenario:
    return Scenario.of({**BASE, "rounds": 2, **changes, "strategy": strategy})


@lru_cache
def federation() -> Federation:
    scenario = scenario_of({"name": "fedavg"})
    return Federation.build(scenario.data, scenario.partition, scenario.seed, Path())


def start(scenario: Scenario) -> ArrayRecord:
    network = build_model(scenario.model, federation().input_shape, federation().num_classes, scenario.seed)
    return pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})


class Study:
    """A run, with what every round was."""

    def __init__(self, strategy: Mapping[str, Any], grid: BlockGrid | None = None, **changes: Any) -> None:
        self.scenario = scenario_of(strategy, **changes)
        self.strategy = strategy_of(self.scenario)
        self.rounds: list[Round] = []
        grid = LocalGrid(LocalApp(self.scenario, federation())) if grid is None else grid
        self.start = start(self.scenario)
        arrays = run_rounds(
            self.strategy, grid, self.start, num_rounds=self.scenario.rounds, callbacks=[self.rounds.append]
        )
        self.arrays = unpack_arrays(arrays)
        self.model = flat(arrays)

    @property
    def clients(self) -> list[list[int]]:
        return [[reply.client for reply in finished.trained] for finished in self.rounds[1:]]

    @property
    def moved(self) -> np.ndarray:
        return self.model - flat(self.start)


def global_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002 - these are what Flower draws from


def seed_globals(seed: int) -> tuple[Any, ...]:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    return global_states()


def single(strategy: Mapping[str, Any], num_clients: int = 5, max_failures: int = 0) -> StockStrategy:
    """A strategy for crafted replies of a few clients."""
    scenario = scenario_of(strategy, server={"clients_per_round": num_clients})
    options = scenario.strategy
    assert isinstance(options, StockOptions)
    return StockStrategy(options, clients_per_round=num_clients, seed=3, max_failures=max_failures)


def weights(message: Message, vector: Any) -> Message:
    """A client's local weights, as a SuperNode answers."""
    arrays = pack_arrays(Layout.of(WEIGHTS).split(np.asarray(vector, np.float32)))
    metrics = MetricRecord(numbers(message.metadata.dst_node_id - 1))  # type: ignore[arg-type]
    give_id(message)
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def round_of(strategy: StockStrategy, make: Any, server_round: int = 1, num_clients: int = 5) -> np.ndarray:
    """One round in which client k answers make(message, k)."""
    arrays = pack_arrays(WEIGHTS)
    sent = list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid_of(num_clients)))
    for message in sent:
        give_id(message)
    replies = [make(message, message.metadata.dst_node_id - 1) for message in sent]
    after, _ = strategy.aggregate_train(server_round, replies[::-1])
    assert after is not None
    return flat(after)
