"""q-FedAvg against Algorithm 2 written as plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedsim import plugins
from strategies.rules import AnyRule, Cohort
from tests.strategies import oracles

QFedAvg = plugins.find("strategies.rules", "qfedavg", AnyRule)

UPDATES = torch.tensor([[0.4, -1.0, 0.2], [0.1, 0.3, -0.5], [-0.2, 0.6, 0.9]], dtype=torch.float64)
LOSSES = torch.tensor([0.5, 2.0, 1.2], dtype=torch.float64)
SHARES = torch.tensor([0.7, 0.1, 0.2], dtype=torch.float64)


def step(q: float, client_lr: float = 0.1, losses: Tensor = LOSSES, shares: Tensor = SHARES) -> Tensor:
    return QFedAvg(q=q, client_lr=client_lr).direction(Cohort.of(UPDATES, losses, shares)).vector


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("client_lr", [0.01, 0.5])
def test_direction_equals_algorithm_two(q: float, client_lr: float) -> None:
    expected = torch.tensor(oracles.qfedavg_step(UPDATES.tolist(), LOSSES.tolist(), q, client_lr))
    torch.testing.assert_close(step(q, client_lr), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("client_lr", [0.01, 1.0])
def test_q_zero_is_the_uniform_mean_and_not_the_one_weighted_by_examples(client_lr: float) -> None:
    torch.testing.assert_close(step(0.0, client_lr), UPDATES.mean(0), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(step(0.0, client_lr), SHARES @ UPDATES, atol=1e-2)


def test_examples_play_no_part() -> None:
    assert torch.equal(step(1.0), step(1.0, shares=SHARES.flip(0)))


def test_large_q_moves_along_the_client_with_the_highest_loss() -> None:
    """Ratio of the weights is (1.2 / 2)^60 < 1e-13."""
    torch.testing.assert_close(
        torch.nn.functional.normalize(step(60.0), dim=0), torch.nn.functional.normalize(UPDATES[1], dim=0)
    )


def test_huge_q_still_follows_the_worst_client() -> None:
    """2^2000 overflows, but divided by F_max^(q - 1) the step has the limit F L u / (q ||L u||^2 + L F)."""
    update, lipschitz, q = UPDATES[1], 10.0, 2000.0
    expected = 2 * lipschitz * update / (q * (lipschitz * update).square().sum() + 2 * lipschitz)
    torch.testing.assert_close(step(q), expected, rtol=1e-6, atol=0)


def test_weights_stand_in_the_ratio_of_losses_to_the_q() -> None:
    weights = QFedAvg(q=2.0, client_lr=0.1).direction(Cohort.of(UPDATES, LOSSES)).weights
    torch.testing.assert_close(weights / weights[0], (LOSSES / LOSSES[0]) ** 2)


def test_single_client_step_by_hand() -> None:
    """K = 1, L = 2, F = 3, q = 1, ||2 u||^2 = 4: F * 2 u / (4 + 2 F) = 6 u / 10."""
    update = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    rule = QFedAvg(q=1.0, client_lr=0.5)
    vector = rule.direction(Cohort.of(update, torch.tensor([3.0]))).vector
    torch.testing.assert_close(vector, 0.6 * update[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0, 2.0])
def test_perfectly_fitted_clients_do_not_overflow(q: float) -> None:
    for losses in (torch.tensor([0.0, 2.0, 1.0]), torch.zeros(3)):
        assert step(q, losses=losses).isfinite().all()


def test_raising_one_loss_raises_that_clients_share() -> None:
    rule = QFedAvg(q=1.0, client_lr=0.1)
    low = rule.direction(Cohort.of(UPDATES, LOSSES)).weights
    high = rule.direction(Cohort.of(UPDATES, LOSSES * torch.tensor([3.0, 1.0, 1.0]))).weights
    assert high[0] / high.sum() > low[0] / low.sum()


def test_negative_loss_is_refused_by_client() -> None:
    with pytest.raises(ValueError, match=r"\b1\b"):
        step(0.5, losses=torch.tensor([1.0, -0.5, 1.0]))


@pytest.mark.parametrize("options", [{"q": -0.1}, {"client_lr": 0.0}, {"client_lr": -1.0}, {"q": math.nan}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        QFedAvg(**{"q": 1.0, "client_lr": 0.1, **options})


def test_gradients_are_not_scaled_like_updates() -> None:
    """Without local steps the update is the gradient itself: q-FedSGD's F^q g / (q F^(q-1) ||g||^2 + L F^q)."""
    gradients, losses = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double(), torch.tensor([0.5, 2.0])
    cohort = Cohort.of(gradients, losses, steps=torch.zeros(2).double())
    found = QFedAvg(q=1.0, client_lr=0.1).direction(cohort).vector
    step = [0.5 * 1.0, 2.0 * 2.0]
    curvature = 1.0 * 1.0 + 10.0 * 0.5 + 1.0 * 4.0 + 10.0 * 2.0
    torch.testing.assert_close(found, torch.tensor(step).double() / curvature, rtol=1e-6, atol=0)


def test_the_learning_rate_of_the_round_counts_where_clients_report_it() -> None:
    updates, losses = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 2.0])
    reported = Cohort.of(updates, losses, lr=torch.full((3,), 0.02).double(), steps=torch.ones(3).double())
    decayed = QFedAvg(q=1.0, client_lr=0.1).direction(reported).vector
    told = QFedAvg(q=1.0, client_lr=0.02).direction(Cohort.of(updates, losses)).vector
    torch.testing.assert_close(decayed, told, rtol=1e-6, atol=0)
