"""What the papers promise, held to on real data with exact gradients and full participation."""

import numpy as np
import pandas as pd
import pytest

from clients.app import LocalApp
from fedsim.datasets import data_root
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.scenario import Scenario
from fedsim.server_app import conduct

BASE = [
    "data.name=digits",
    "data.limit=1200",
    "partition.num_clients=8",
    "engine.backend=local",
    "evaluation.every=30",
]


@pytest.fixture
def losses(tmp_path):
    """Return a function that runs the scenario and gives the train losses, [rounds, clients], and the rounds."""

    def train(*changes: str) -> tuple[np.ndarray, pd.DataFrame]:
        scenario = Scenario.load("mnist_gradient", [*BASE, *changes])
        federation = Federation.build(scenario.data, scenario.partition, scenario.seed, data_root())
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        conduct(scenario, federation, LocalGrid(LocalApp(scenario, federation)), folder)
        table = pd.read_parquet(folder / "clients.parquet")
        wide = table[table["round"] > 0].pivot_table(index="round", columns="client", values="loss")
        rounds = pd.read_parquet(folder / "rounds.parquet")
        return wide.to_numpy(), rounds[rounds["round"] > 0]

    return train


def rises(losses: np.ndarray) -> int:
    return int((np.diff(losses.mean(axis=1)) > 0).sum())


def test_adafed_keeps_every_clients_loss_falling_in_every_round(losses):
    found, rounds = losses("rounds=60", "server.lr=0.05")
    assert found.shape == (60, 8)
    assert (np.diff(found, axis=0) < 0).all()
    assert (rounds["mode"] == "exact").all()
    assert (rounds["descent_min"] > 0).all()
    assert rounds["rate_spread"].max() < 1e-6


def test_adafed_lets_every_log_loss_fall_at_one_rate(losses):
    # gamma = 1: <d, g_k> / f_k is the same for all, so to first order the log-losses fall together.
    found, _ = losses("rounds=40", "server.lr=0.02")
    falls = -np.diff(np.log(found), axis=0)
    assert (falls.std(axis=1) < 0.1 * falls.mean(axis=1)).all()


def test_adafed_is_fairer_than_fedavg_at_the_same_mean_loss(losses):
    fair, _ = losses("rounds=60", "server.lr=0.1")
    plain, _ = losses("rounds=60", "strategy.name=fedavg", "server.lr=0.2")
    level = max(fair.mean(axis=1).min(), plain.mean(axis=1).min())
    at_level = [run[np.argmax(run.mean(axis=1) <= level)].std() for run in (fair, plain)]
    assert at_level[0] < 0.3 * at_level[1]


def test_dqnfed_safeguard_removes_most_rises_of_the_mean_loss(losses):
    free, _ = losses("rounds=60", "strategy.name=dqnfed", "strategy.safeguard=none", "server.lr=1.0")
    guarded, rounds = losses("rounds=60", "strategy.name=dqnfed", "strategy.safeguard=curvature", "server.lr=1.0")
    assert rises(free) >= 10
    assert rises(guarded) <= rises(free) // 5
    assert ((rounds["step_share"] > 0) & (rounds["step_share"] <= 1)).all()


def test_dqnfed_reaches_a_loss_that_fedavg_does_not(losses):
    newton, _ = losses("rounds=60", "strategy.name=dqnfed", "strategy.safeguard=curvature")
    plain, _ = losses("rounds=60", "strategy.name=fedavg", "server.lr=0.2")
    assert newton.mean(axis=1).min() < 0.7 * plain.mean(axis=1).min()


@pytest.mark.parametrize("changes", [(), ("server.clients_per_round=4",), ("strategy.pairs_from=local",)])
def test_dqnfed_learns_from_stochastic_local_epochs(losses, changes):
    found, rounds = losses(
        "rounds=40", "client.local_epochs=1", "client.lr=0.1", "client.batch_size=16", "server.lr=1.0",
        "strategy.name=dqnfed", *changes,
    )  # fmt: skip
    means = np.nanmean(found, axis=1)
    assert means[-5:].mean() < 0.5 * means[0]
    assert (rounds["norm_ratio"] < 3).all()  # no step far beyond the mean update
