"""What is measured: settings, each as a scenario, so that every contender gets the same shards and start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from clients.evaluation import evaluate
from fedsim.datasets import data_root
from fedsim.federation import Federation
from fedsim.metrics import measured
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork
from fedsim.scenario import ClientSettings, Scenario, overrides_of

Floats = NDArray[np.float32]

NUM_WORKERS = 2
"""Worker processes of every contender that has any; each computes on one thread."""

SCENARIO = "mnist_shards"
"""The bundled scenario that the overrides start from; they replace all of it that matters."""

IMAGE, CLASSES = (1, 28, 28), 10

# Settings that some versions do not know yet: only the losses the rule needs, and clients trained in blocks.
_WANTED = {"losses": "needed", "cohort": "auto"}
_FASTEST = [f"client.{key}={value}" for key, value in _WANTED.items() if key in ClientSettings.model_fields]


@dataclass(frozen=True)
class Workload:
    """One setting.

    Attributes:
        name: W1, W2 or W3.
        title: What it is, for the table.
        settings: Overrides, with semicolons between.
        trains: False where a client only copies the weights it got.
        rounds: In one turn: long enough that it is about rounds and not about waking up.
        evaluates: Whether all clients are asked about the initial model, as in every run.
    """

    name: str
    title: str
    settings: str
    trains: bool = True
    rounds: int = 40
    evaluates: bool = True

    def overrides(self) -> list[str]:
        """Return everything that differs from the bundled scenario."""
        common = "data.download=false; client.local_epochs=1; strategy.name=fedavg; server.lr=1.0"
        common += f"; evaluation.every=1000000; engine.workers={NUM_WORKERS}; engine.threads_per_worker=1"
        return [*overrides_of(common), *overrides_of(self.settings), *_FASTEST]

    def scenario(self, *more: str) -> Scenario:
        return Scenario.load(SCENARIO, [*self.overrides(), *more])

    @cached_property
    def federation(self) -> Federation:
        scenario = self.scenario()
        return Federation.build(scenario.data, scenario.partition, scenario.seed, data_root())

    def network(self) -> FlatNetwork:
        """Return the network at the weights every contender starts from."""
        scenario = self.scenario()
        return FlatNetwork(build_model(scenario.model, IMAGE, CLASSES, scenario.seed), torch.device("cpu"))

    def accuracy(self, theta: Floats) -> float:
        """Return the accuracy on MNIST's own 10,000 test images."""
        test = self.federation.common_test
        assert test is not None, "MNIST has a test set"
        means = evaluate(self.network(), torch.from_numpy(theta), test, [len(test)], measured())
        return float(means["accuracy"][0])


# 1000 clients share 60,000 examples and a client has at least one to be tested on, hence 59 and not 60.
WORKLOADS = {
    one.name: one
    for one in (
        Workload(
            "W1",
            "CNN, MNIST, 10 of 10 clients x 600 examples, batches of 20, one epoch",
            "data.limit=7500; partition.name=iid; partition.num_clients=10; partition.test_fraction=0.2;"
            "model.name=cnn; client.batch_size=20; client.lr=0.1; server.clients_per_round=10",
            rounds=5,
        ),
        Workload(
            "W2",
            "no training, the weights of the same CNN there and back, 100 of 1000 clients",
            "partition.name=iid; partition.num_clients=1000; partition.test_fraction=0.01;"
            "model.name=cnn; server.clients_per_round=100",
            trains=False,
        ),
        Workload(
            "W3",
            "784 x 10 linear, MNIST, 100 of 1000 clients x 59 examples, batches of 10, one epoch",
            "partition.name=iid; partition.num_clients=1000; partition.test_fraction=0.01;"
            "model.name=logistic; client.batch_size=10; client.lr=0.05; server.clients_per_round=100",
        ),
    )
}


def registered(num_clients: int) -> Workload:
    """Return the setting of `benchmarks.registered`: 1,000 of so many clients, who share MNIST's examples."""
    return Workload(
        f"registered-{num_clients}",
        f"784 x 10 linear, MNIST, 1,000 of {num_clients:,} clients x 40 examples, batches of 10, one epoch",
        f"partition.name=resampled; partition.num_clients={num_clients}; partition.examples=50;"
        "model.name=logistic; client.batch_size=10; client.lr=0.05; server.clients_per_round=1000",
        rounds=5,
        evaluates=False,
    )


def workload_of(name: str) -> Workload:
    """Return the setting that is called so."""
    kind, _, number = name.partition("-")
    return registered(int(number)) if kind == "registered" else WORKLOADS[name]
