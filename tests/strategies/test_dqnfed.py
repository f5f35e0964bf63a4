"""DQN-Fed: the rates are those of each client's own quasi-Newton step."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim import plugins
from strategies.rules import AnyRule, Cohort, Direction
from tests.strategies import oracles

DQNFed = plugins.find("strategies.rules", "dqnfed", AnyRule)
AdaFed = plugins.find("strategies.rules", "adafed", AnyRule)
STEPS = ["aligned", "paper"]


def tensor(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rates_of(seed: int, count: int) -> Tensor:
    return 0.5 + 1.5 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(updates: object, rates: object, step: str = "aligned", losses: object = None) -> Direction:
    rows, rate = tensor(updates), tensor(rates)
    loss = torch.ones(len(rows), dtype=torch.float64) if losses is None else tensor(losses)
    rule = DQNFed(step=step, safeguard="none")
    return rule.direction(Cohort.of(rows, loss, rate=rate), rule.initial_memory())[0]


def test_clients_must_send_their_rate() -> None:
    assert "rate" in DQNFed.needs


@pytest.mark.parametrize("seed", range(3))
def test_aligned_step_matches_every_clients_quasi_newton_change(seed: int) -> None:
    """<x, g_k> = c_k."""
    updates, rates = normal(seed, 6, 30), rates_of(seed, 6)
    torch.testing.assert_close(updates @ solve(updates, rates).vector, rates, rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_paper_step_equals_the_published_recursion(seed: int) -> None:
    updates, rates = normal(seed, 6, 30), rates_of(seed, 6)
    direction = solve(updates, rates, "paper")
    expected = oracles.gram_schmidt_direction(updates.numpy(), rates.numpy())
    torch.testing.assert_close(direction.vector, tensor(expected), rtol=1e-9, atol=1e-11)
    assert direction.info["mode"] == "exact"


def test_paper_step_is_the_aligned_one_over_its_squared_length() -> None:
    updates, rates = normal(1, 5, 12), rates_of(1, 5)
    x = solve(updates, rates, "aligned").vector
    torch.testing.assert_close(solve(updates, rates, "paper").vector, x / (x @ x), rtol=1e-9, atol=1e-12)


def test_paper_step_is_adafed_with_rates_in_the_place_of_losses() -> None:
    updates, rates = normal(2, 5, 12), rates_of(2, 5)
    adafed = AdaFed(gamma=1.0, scale="raw").direction(Cohort.of(updates, rates))
    torch.testing.assert_close(solve(updates, rates, "paper").vector, adafed.vector, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("step", STEPS)
def test_losses_and_examples_play_no_part_in_the_direction(step: str) -> None:
    updates, rates = normal(3, 4, 9), rates_of(3, 4)
    there = solve(updates, rates, step, losses=[1.0, 2.0, 3.0, 4.0]).vector
    torch.testing.assert_close(there, solve(updates, rates, step, losses=[9.0, 0.1, 0.0, 2.0]).vector)


def test_as_many_clients_as_parameters_solve_the_square_system() -> None:
    updates, rates = normal(4, 6, 6), rates_of(4, 6)
    expected = torch.linalg.solve(updates, rates)
    torch.testing.assert_close(solve(updates, rates).vector, expected, rtol=1e-7, atol=1e-9)


def test_one_client_moves_along_its_gradient_and_not_its_newton_step() -> None:
    """x = g (g' H^-1 g) / (g' g): with H = diag(1, 4), g = (2, 4) the rate is 4 + 4 = 8, so x = 8 g / 20."""
    torch.testing.assert_close(solve([[2.0, 4.0]], [8.0]).vector, tensor([0.8, 1.6]))


def test_rates_of_the_identity_on_one_client_give_its_gradient() -> None:
    gradient = tensor([1.0, -2.0, 3.0])
    torch.testing.assert_close(solve(gradient[None], [14.0]).vector, gradient)


def test_rates_of_the_identity_on_orthogonal_gradients_give_their_sum() -> None:
    """c_k = ||g_k||^2 and <sum g, g_k> = ||g_k||^2."""
    updates = tensor([1.0, 2.0, 5.0]).diag()
    torch.testing.assert_close(solve(updates, [1.0, 4.0, 25.0]).vector, tensor([1.0, 2.0, 5.0]))


def test_aligned_step_scales_with_the_rates_and_against_the_gradients() -> None:
    updates, rates = normal(5, 4, 9), rates_of(5, 4)
    x = solve(updates, rates).vector
    torch.testing.assert_close(solve(updates, 3 * rates).vector, 3 * x, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(solve(3 * updates, rates).vector, x / 3, rtol=1e-9, atol=1e-12)


def test_aligned_step_can_raise_the_loss_of_an_ill_conditioned_quadratic() -> None:
    """f changes by q (-1 + r / 2), r = (g'Hg)(g'H^-1 g) / ||g||^4 <= (kappa + 1)^2 / (4 kappa)."""
    kappa = 100.0
    hessian, gradient = tensor([1.0, kappa]).diag(), tensor([1.0, 1.0])
    theta = torch.linalg.solve(hessian, gradient)
    rate = gradient @ theta
    moved = theta - solve(gradient[None], rate[None]).vector
    change = (moved @ hessian @ moved - theta @ hessian @ theta) / 2
    ratio = (kappa + 1) ** 2 / (4 * kappa)
    assert ratio == pytest.approx(25.5, abs=0.01)
    assert float(change) == pytest.approx(float(rate) * (-1 + ratio / 2), rel=1e-9)


@pytest.mark.parametrize("step", STEPS)
def test_same_gradient_with_different_rates_still_moves(step: str) -> None:
    """d = g / max c; then x = d / ||d||^2 = g max c / ||g||^2, which gives every client its rate or more."""
    gradient = tensor([3.0, -1.0])
    direction = solve(gradient.repeat(2, 1), [1.0, 4.0], step)
    expected = gradient / 4 if step == "paper" else gradient * 4 / 10
    torch.testing.assert_close(direction.vector, expected, rtol=1e-8, atol=0)
    assert direction.info["mode"] == "convex"


@pytest.mark.parametrize("step", STEPS)
def test_opposite_gradients_stand_still(step: str) -> None:
    direction = solve([[1.0, -2.0], [-1.0, 2.0]], [1.0, 3.0], step)
    assert direction.info["mode"] == "stationary"
    assert not direction.vector.any()


@pytest.mark.parametrize("step", STEPS)
def test_client_with_zero_gradient_is_left_out(step: str) -> None:
    updates, rates = normal(6, 3, 6), tensor([1.0, 0.0, 2.0])
    updates[1] = 0.0
    expected = solve(updates[[0, 2]], rates[[0, 2]], step).vector
    torch.testing.assert_close(solve(updates, rates, step).vector, expected, rtol=1e-10, atol=1e-12)


def test_float32_gradients_keep_their_rates_to_storage() -> None:
    updates, rates = (normal(7, 1, 200) + 1e-2 * normal(8, 5, 200)).float(), rates_of(7, 5)
    rule = DQNFed(step="aligned", safeguard="none")
    vector = rule.direction(Cohort.of(updates, rates, rate=rates), rule.initial_memory())[0].vector
    slack = 2.0**-24 * (updates.double().abs() @ vector.double().abs())
    assert vector.dtype == torch.float32
    assert ((updates.double() @ vector.double() - rates).abs() <= 1.5 * slack + 1e-6 * rates).all()


@pytest.mark.parametrize("step", STEPS)
def test_record_says_what_the_direction_does(step: str) -> None:
    updates, rates = normal(9, 5, 9) + 0.2, rates_of(9, 5)
    direction = solve(updates, rates, step)
    d, mean, info = direction.vector, updates.mean(0), direction.info
    assert info["descent_min"] == pytest.approx(float((updates @ d).min()), rel=1e-9)
    assert info["cos_mean"] == pytest.approx(float(d @ mean / d.norm() / mean.norm()), rel=1e-9)
    assert info["norm_ratio"] == pytest.approx(float(d.norm() / mean.norm()), rel=1e-9)
    assert abs(info["rate_spread"]) < 1e-8


# the curvature safeguard, which only shortens


def guarded(updates: Tensor, rates: Tensor, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
    rule = DQNFed(step="aligned", safeguard="curvature", damping=0.7)
    return rule.direction(Cohort.of(updates, torch.ones(len(updates)), rate=rates), memory)


def test_safeguard_keeps_the_direction_and_never_lengthens_it() -> None:
    updates, rates, memory = normal(10, 4, 9), rates_of(10, 4), {}
    for _ in range(4):
        direction, memory = guarded(updates, rates, memory)
        plain = solve(updates, rates).vector
        share = float(direction.vector @ plain / (plain @ plain))
        assert 0 < share <= 1 + 1e-12
        torch.testing.assert_close(direction.vector, share * plain)
        torch.testing.assert_close(direction.weights @ updates, direction.vector)
        updates = 0.8 * updates


def test_safeguard_makes_the_first_step_no_longer_than_the_mean_update() -> None:
    updates, rates = normal(11, 3, 9), tensor([500.0, 900.0, 700.0])
    vector = guarded(updates, rates, {})[0].vector
    assert float(vector.norm()) == pytest.approx(float(updates.mean(0).norm()), rel=1e-10)


def test_safeguard_goes_the_damped_share_of_the_way_on_a_parabola() -> None:
    """f = 4 theta^2 / 2, rates far too large: one pair shows the curvature 4, then theta -> 0.3 theta."""
    theta, memory = tensor([3.0]), {}
    direction, memory = guarded(4 * theta[None], tensor([5000.0]), memory)
    theta = theta - direction.vector
    for _ in range(3):
        direction, memory = guarded(4 * theta[None], tensor([5000.0]), memory)
        following = theta - direction.vector
        torch.testing.assert_close(following, 0.3 * theta, rtol=1e-9, atol=0)
        theta = following


def test_safeguard_memory_survives_a_checkpoint_and_is_not_changed_in_place() -> None:
    updates, rates = normal(12, 3, 6), rates_of(12, 3)
    _, memory = guarded(updates, rates, {})
    _, memory = guarded(0.8 * updates, rates, memory)
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    restored, before = torch.load(file, weights_only=True), copy.deepcopy(memory)
    there, _ = guarded(0.5 * updates, rates, memory)
    here, _ = guarded(0.5 * updates, rates, restored)
    assert torch.equal(there.vector, here.vector)
    torch.testing.assert_close(memory, before, rtol=0, atol=0)


def test_negative_rate_is_refused_by_client() -> None:
    with pytest.raises(ValueError, match=r"\b2\b"):
        solve(torch.eye(3), [1.0, 1.0, -0.1])


def test_impossible_step_is_refused() -> None:
    with pytest.raises(ValueError):
        DQNFed(step="sideways")
