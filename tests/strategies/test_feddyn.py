"""FedDyn: the paper's algorithm line by line, and the fixed point its linear terms are made for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import seeds
from fedsim.datasets import Split
from fedsim.errors import ScenarioError
from fedsim.settings import ClientSettings
from strategies.rules.fedavg import FedAvg
from strategies.rules.feddyn import FedDyn
from tests.clients.methods import (
    NUM_CLIENTS,
    PER_ROUND,
    Study,
    gradient,
    linear,
    objective,
    optimum,
    pull,
    scenario_of,
    shard,
    slow_sgd,
    train_in_float64,
)

NUM = 5
SHARDS = [shard(count, seed) for seed, count in enumerate((20, 13, 40, 31, 8), start=10)]
EVEN = [shard(20, seed) for seed in range(10, 10 + NUM)]
# Client 4 never takes part and counts all the same; cohorts differ in size.
COHORTS = [(0, 2), (1, 2, 3), (0,), (0, 1, 2, 3), (3,), (1, 3), (0, 1, 2)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.8, "clip_norm": 0.5}], ids=["plain", "momentum, clipped"])
@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_rounds_equal_a_plain_reading_of_the_paper(alpha: float, options: dict[str, Any]) -> None:
    settings = ClientSettings(batch_size=8, local_epochs=2, weight_decay=0.1, **options)
    found = train_in_float64(FedDyn(alpha=alpha), SHARDS, settings, COHORTS)
    theta = torch.zeros_like(found.thetas[0])
    h = torch.zeros_like(theta)
    slopes = [torch.zeros_like(theta) for _ in range(NUM)]
    for number, clients in enumerate(COHORTS, start=1):
        locals_ = []
        for client in clients:

            def extra(w: torch.Tensor, client: int = client, theta: torch.Tensor = theta) -> torch.Tensor:
                return pull(alpha, theta)(w) - slopes[client] @ w

            batches = seeds.generator(0, "batches", number, client)
            locals_.append(slow_sgd(theta, SHARDS[client], settings, batches, extra, logits=linear))
        for client, w in zip(clients, locals_, strict=True):
            slopes[client] = slopes[client] - alpha * (w - theta)
        h = h - alpha / NUM * sum((w - theta for w in locals_), torch.zeros_like(theta))
        theta = torch.stack(locals_).mean(dim=0) - h / alpha
        torch.testing.assert_close(found.thetas[number], theta, atol=1e-12, rtol=1e-9)
    assert sorted(found.states) == [0, 1, 2, 3]
    for client, state in found.states.items():
        torch.testing.assert_close(state["linear"], slopes[client], atol=1e-12, rtol=1e-9)


def test_the_first_round_goes_further_than_the_mean_by_the_share_of_clients() -> None:
    """h = alpha (|S| / N) mean u after it, hence theta - (1 + |S| / N) mean u; clients count evenly."""
    study = Study("feddyn")
    before = study.theta.astype(np.float64)
    trained = study.round()
    assert len({answer.numbers["num-examples"] for answer, _ in trained.values()}) > 1
    mean = np.mean([update for _, update in trained.values()], axis=0, dtype=np.float64)
    np.testing.assert_allclose(study.theta, before - (1 + PER_ROUND / NUM_CLIENTS) * mean, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(("alpha", "client"), [(0.1, {}), (1.0, {"local_epochs": 2, "momentum": 0.5})])
def test_the_servers_term_is_the_mean_over_all_clients_of_theirs(alpha: float, client: dict[str, Any]) -> None:
    study = Study({"name": "feddyn", "alpha": alpha}, **client)
    took_part: set[int] = set()
    for _ in range(8):
        theta = study.theta.astype(np.float64)
        trained = study.round()
        took_part |= set(trained)
        states = study.grid.client_states()
        assert set(states) == took_part
        mean = sum((state["linear"].astype(np.float64) for state in states.values()), np.zeros(650)) / NUM_CLIENTS
        assert np.abs(mean).max() > 1e-3
        update = np.mean([update for _, update in trained.values()], axis=0, dtype=np.float64)
        np.testing.assert_allclose(study.theta, theta - update - mean / alpha, rtol=1e-5, atol=5e-6)
    assert len(took_part) == NUM_CLIENTS


@pytest.mark.parametrize("shards", [EVEN, SHARDS], ids=["equal shards", "unequal shards"])
class TestFixedPoint:
    """Heterogeneous logistic regression, several local steps that do not reach the local minimum."""

    SETTINGS = ClientSettings(batch_size=100, local_epochs=5, weight_decay=0.1)
    LR = 0.2

    def test_it_is_the_optimum_and_the_terms_are_the_gradients_there(self, shards: list[Split]) -> None:
        everyone = [range(NUM)] * 120
        found = train_in_float64(FedDyn(alpha=0.5), shards, self.SETTINGS, everyone, self.LR)
        theta, best = found.thetas[-1], optimum(shards, 0.1)
        assert float((theta - found.thetas[-2]).norm()) < 1e-9
        torch.testing.assert_close(theta, best, atol=1e-8, rtol=0)
        slopes = [gradient(theta, data, 0.1, linear) for data in shards]
        assert min(float(slope.norm()) for slope in slopes) > 0.1  # each client alone would go elsewhere
        kept = [found.states[client]["linear"] for client in range(NUM)]
        for own, slope in zip(kept, slopes, strict=True):
            torch.testing.assert_close(own, slope, atol=1e-7, rtol=0)
        torch.testing.assert_close(torch.stack(kept).sum(dim=0), torch.zeros_like(theta), atol=1e-7, rtol=0)

    def test_sampled_clients_lead_there_too(self, shards: list[Split]) -> None:
        generator = torch.Generator().manual_seed(0)
        cohorts = [sorted(torch.randperm(NUM, generator=generator)[:2].tolist()) for _ in range(250)]
        found = train_in_float64(FedDyn(alpha=0.5), shards, self.SETTINGS, cohorts, self.LR)
        torch.testing.assert_close(found.thetas[-1], optimum(shards, 0.1), atol=1e-6, rtol=0)

    def test_fedavg_ends_elsewhere(self, shards: list[Split]) -> None:
        found = train_in_float64(FedAvg(), shards, self.SETTINGS, [range(NUM)] * 120, self.LR)

        def mean(w: torch.Tensor) -> float:
            return float(torch.stack([objective(w, data, 0.1, linear) for data in shards]).mean())

        assert float((found.thetas[-1] - found.thetas[-20]).norm()) < 1e-5
        assert mean(found.thetas[-1]) > mean(optimum(shards, 0.1)) + 1e-3


class TestScenario:
    def test_without_local_steps_there_is_nothing_to_learn(self) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.alpha: .*client\.local_epochs >= 1, got 0"):
            scenario_of("feddyn", local_epochs=0)

    @pytest.mark.parametrize("alpha", [0.0, -1.0])
    def test_the_regulariser_must_pull(self, alpha: float) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.alpha: must be greater than 0"):
            scenario_of({"name": "feddyn", "alpha": alpha})
