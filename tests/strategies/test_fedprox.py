"""FedProx: FedAvg at mu = 0, shorter steps for larger mu, a gradient step of 1 / mu in the limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from clients.methods.proximal import Proximal
from fedsim import seeds
from fedsim.errors import ScenarioError
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from strategies.rules.fedavg import FedAvg
from strategies.rules.fedprox import FedProx
from tests.clients.methods import (
    CPU,
    Linear,
    Study,
    gradient,
    linear,
    pull,
    scenario_of,
    shard,
    slow_sgd,
    train_in_float64,
    vector,
)
from tests.clients.one import fit_one

SHARDS = [shard(count, seed) for seed, count in enumerate((20, 13, 40, 31), start=10)]
COHORTS = [(0, 2), (1, 2, 3), (0,), (0, 1, 2, 3), (1, 3)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounds_equal_a_plain_reading_of_the_paper(momentum: float) -> None:
    mu, settings = 0.6, ClientSettings(batch_size=8, local_epochs=2, momentum=momentum, weight_decay=0.1)
    found = train_in_float64(FedProx(mu=mu), SHARDS, settings, COHORTS)
    theta = torch.zeros_like(found.thetas[0])
    for number, clients in enumerate(COHORTS, start=1):
        locals_ = [
            slow_sgd(
                theta,
                SHARDS[client],
                settings,
                seeds.generator(0, "batches", number, client),
                pull(mu, theta),
                logits=linear,
            )
            for client in clients
        ]
        sizes = [len(SHARDS[client]) for client in clients]
        theta = sum((n * w for n, w in zip(sizes, locals_, strict=True)), torch.zeros_like(theta)) / sum(sizes)
        torch.testing.assert_close(found.thetas[number], theta, atol=1e-13, rtol=1e-10)
    assert found.states == {client: {} for client in range(4)}


CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9, "local_epochs": 2},
    "clipped": {"clip_norm": 0.5, "weight_decay": 0.1},
}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=list(CLIENTS))
def test_without_the_term_it_has_fedavgs_bits(client: dict[str, Any]) -> None:
    plain, none, some = (
        Study(strategy, **client)
        for strategy in ("fedavg", {"name": "fedprox", "mu": 0.0}, {"name": "fedprox", "mu": 0.5})
    )
    for _ in range(3):
        first, second = plain.round(), none.round()
        some.round()
        assert list(first) == list(second)
        for number, (answer, update) in first.items():
            assert np.array_equal(update, second[number][1])
            assert {**answer.numbers, "proximal": 0.0} == second[number][0].numbers
        assert np.array_equal(plain.theta, none.theta)
        assert not np.allclose(plain.theta, some.theta, rtol=1e-3)


def test_a_single_step_from_the_received_weights_does_not_feel_the_term() -> None:
    plain, strong = (Study(name, batch_size=1000) for name in ("fedavg", {"name": "fedprox", "mu": 19.0}))
    for _ in range(2):
        plain.round()
        strong.round()
    assert np.array_equal(plain.theta, strong.theta)


def minimise(mu: float, steps: int = 400) -> torch.Tensor:
    """A client's update where f_k is convex and local training reaches the minimum."""
    theta, data = vector(3, 1.0, 24), SHARDS[0]
    settings = ClientSettings(batch_size=100, local_epochs=steps, weight_decay=0.05)
    # An lr below 1 / (L + mu), L the largest curvature: mean ||x||^2 / 2 bounds that of the cross entropy.
    curvature = float((data.x.square().sum(dim=1) + 1).mean()) / 2 + 0.05
    network = FlatNetwork(Linear(), CPU)
    return fit_one(
        network, theta, data, settings, 1 / (curvature + mu), seeds.generator(0), method=Proximal(mu)
    ).update


def test_a_stronger_pull_gives_shorter_updates_on_a_convex_problem() -> None:
    lengths = [float(minimise(mu).norm()) for mu in (0.0, 0.01, 0.1, 1.0, 10.0, 100.0)]
    assert all(before > 1.02 * after for before, after in pairwise(lengths))
    assert lengths[-1] > 0


@pytest.mark.parametrize("mu", [1.0, 10.0, 1e3])
def test_local_training_ends_where_gradient_and_pull_cancel(mu: float) -> None:
    theta, update = vector(3, 1.0, 24), minimise(mu)
    balance = gradient(theta - update, SHARDS[0], 0.05, linear)
    torch.testing.assert_close(mu * update, balance, atol=1e-9, rtol=1e-7)


def test_in_the_limit_the_update_is_a_gradient_step_of_one_over_mu() -> None:
    theta = vector(3, 1.0, 24)
    slope = gradient(theta, SHARDS[0], 0.05, linear)
    misses = [float((mu * minimise(mu) - slope).norm() / slope.norm()) for mu in (1e2, 1e3, 1e4)]
    assert misses[0] < 0.1
    assert misses[1] == pytest.approx(misses[0] / 10, rel=0.2)
    assert misses[2] == pytest.approx(misses[1] / 10, rel=0.2)


def test_the_server_averages_by_examples() -> None:
    settings = ClientSettings(batch_size=8)
    found = train_in_float64(FedProx(mu=0.0), SHARDS, settings, COHORTS)
    expected = train_in_float64(FedAvg(), SHARDS, settings, COHORTS)
    assert torch.equal(found.thetas[-1], expected.thetas[-1])


class TestScenario:
    def test_without_local_steps_there_is_nothing_to_hold(self) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.mu: .*client\.local_epochs >= 1, got 0"):
            scenario_of("fedprox", local_epochs=0)

    def test_a_push_is_refused(self) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.mu: must be at least 0\.0, got -0\.1"):
            scenario_of({"name": "fedprox", "mu": -0.1})
