"""What the CMI hooks are for, on real data: one lowers the CMI that is measured, the other raises it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clients.app import LocalApp
from clients.evaluation import evaluate
from clients.hooks import Hook
from clients.hooks.mcmi import Mcmi
from clients.objective import Objective
from clients.steps import Client
from clients.training import Work, fit_each, shapes_of
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.datasets.digits import Digits
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.metrics.cmi import Cmi as Measured
from fedsim.models.mlp import Mlp
from fedsim.parameters import FlatNetwork
from fedsim.scenario import Scenario
from fedsim.settings import ClientSettings
from tests.test_determinism import run

SCENARIO = {
    "name": "cmi",
    "rounds": 5,
    "data": {"name": "digits", "limit": 600},
    "partition": {"name": "dirichlet", "num_clients": 4, "alpha": 1.0},
    "model": {"name": "mlp", "hidden": [16]},
    "strategy": {"name": "fedavg"},
    "evaluation": {"every": 5, "metrics": ["cmi"]},
}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_larger_lam_lowers_the_cmi_of_the_test_outputs(seed: int, tmp_path: Path) -> None:
    found = []
    for lam in (0.0, 1.0, 4.0):
        client = {"lr": 0.2, "batch_size": 16, "local_epochs": 2, "hooks": [{"name": "cmi", "lam": lam}]}
        scenario = Scenario.of({**SCENARIO, "seed": seed, "client": client})
        federation = Federation.build(scenario.data, scenario.partition, seed, Path())
        app = LocalApp(scenario, federation)
        tables = run(app.scenario, federation, LocalGrid(app), tmp_path / str(lam))
        clients, rounds = (tables[name].set_index("round") for name in ("clients", "rounds"))
        reported = clients.loc[5, "cmi_concentration"].mean()
        found.append((float(rounds.loc[5, "pooled_cmi"]), float(reported)))
    measured, reported_ = np.array(found).T
    assert measured[0] > measured[1] > measured[2]
    assert measured[2] < 0.7 * measured[0]
    assert reported_[0] > reported_[1] > reported_[2]  # what clients report says so too


def train(
    theta: torch.Tensor, data: Split, hooks: dict[str, Hook], seed: int, epochs: int
) -> tuple[torch.Tensor, float]:
    """Return the weights and the CMI on the train shard after some epochs."""
    network = FlatNetwork(Mlp(hidden=(16,)).build(tuple(data.x.shape[1:]), 10), torch.device("cpu"))
    client = Client(range(len(data)), lambda purpose: seeds.generator(seed, purpose))
    objective = Objective(hooks, shapes_of(network, data.x[:1], 16))
    work = Work(ClientSettings(batch_size=16, local_epochs=epochs), 0.1, objective)
    (fit,) = fit_each(network, theta, data, [client], work)
    found = evaluate(network, theta - fit.update, data, [len(data)], {"cmi": Measured()})
    return theta - fit.update, float(found["cmi"][0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mcmi_raises_the_cmi_of_a_trained_model(seed: int) -> None:
    data = Digits(limit=300).load(Path()).train
    with seeds.global_stream(seed, "start"):
        network = FlatNetwork(Mlp(hidden=(16,)).build(tuple(data.x.shape[1:]), 10), torch.device("cpu"))
    teacher, _ = train(network.theta, data, {}, seed, 4)
    found = [train(teacher, data, {"mcmi": Mcmi(lam=lam)}, seed + 1, 4)[1] for lam in (0.0, 0.15, 0.4)]
    assert found[0] < found[1] < found[2]
