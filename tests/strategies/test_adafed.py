"""AdaFed: every loss falls, and larger losses fall faster, at rates |f_k|^gamma."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedsim import plugins
from strategies.rules import AnyRule, Cohort, Direction
from tests.strategies import oracles

AdaFed = plugins.find("strategies.rules", "adafed", AnyRule)
SCALES = ["raw", "min", "mean", "norm"]


def tensor(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(seed: int, count: int) -> Tensor:
    return 0.5 + 1.5 * torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(updates: object, losses: object, gamma: float = 1.0, scale: str = "raw") -> Direction:
    return AdaFed(gamma=gamma, scale=scale).direction(Cohort.of(tensor(updates), tensor(losses)))


# the rates


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_direction_equals_the_published_recursion(gamma: float, seed: int) -> None:
    updates, losses = normal(seed, 7, 60), losses_of(seed, 7)
    expected = oracles.gram_schmidt_direction(updates.numpy(), (losses**gamma).numpy())
    direction = solve(updates, losses, gamma)
    torch.testing.assert_close(direction.vector, tensor(expected), rtol=1e-9, atol=1e-11)
    assert direction.info["mode"] == "exact"


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 3.0])
def test_every_loss_falls_at_its_rate(gamma: float) -> None:
    """<d, g_k> = f_k^gamma ||d||^2."""
    updates, losses = normal(1, 6, 20), losses_of(1, 6)
    d = solve(updates, losses, gamma).vector
    torch.testing.assert_close(updates @ d, losses**gamma * (d @ d), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", SCALES)
def test_with_gamma_one_all_log_losses_fall_alike(scale: str) -> None:
    updates, losses = normal(2, 6, 20), losses_of(2, 6)
    falls = updates @ solve(updates, losses, 1.0, scale).vector / losses
    torch.testing.assert_close(falls, falls[:1].expand(6), rtol=1e-9, atol=0)
    assert falls[0] > 0


@pytest.mark.parametrize("scale", SCALES)
def test_with_gamma_zero_all_losses_fall_alike_whatever_they_are(scale: str) -> None:
    updates = normal(3, 5, 20)
    d = solve(updates, losses_of(3, 5), 0.0, scale).vector
    torch.testing.assert_close(updates @ d, (updates[0] @ d).expand(5), rtol=1e-9, atol=0)
    torch.testing.assert_close(d, solve(updates, losses_of(4, 5), 0.0, scale).vector)


def test_lengths_of_gradients_are_not_normalised_away() -> None:
    """Had the rows been made unit first, <d, g_k> would be f_k ||g_k|| ||d||^2."""
    updates, losses = tensor([[1.0, 0.0], [10.0, 10.0]]), tensor([1.0, 2.0])
    falls = updates @ solve(updates, losses).vector
    assert falls[1] / falls[0] == pytest.approx(2.0, rel=1e-10)


# closed forms


def test_one_client_moves_along_its_gradient_over_its_loss_to_the_gamma() -> None:
    torch.testing.assert_close(solve([[2.0, -6.0]], [2.0], gamma=2.0).vector, tensor([0.5, -1.5]))


def test_orthogonal_updates_have_a_closed_form() -> None:
    lengths, losses = tensor([1.0, 2.0, 5.0]), tensor([3.0, 1.0, 2.0])
    expected = losses / lengths / (losses**2 / lengths**2).sum()
    torch.testing.assert_close(solve(lengths.diag(), losses).vector, expected)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
def test_gamma_zero_of_equicorrelated_unit_updates_is_the_uniform_mean(rho: float) -> None:
    cosines = (1 - rho) * torch.eye(6, dtype=torch.float64) + rho
    updates = torch.linalg.cholesky(cosines)
    torch.testing.assert_close(
        solve(updates, losses_of(5, 6), gamma=0.0).vector, updates.mean(0), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 2.0])
def test_equicorrelated_updates_turn_away_from_the_mean_as_they_agree(rho: float, gamma: float) -> None:
    """The record's numbers, from ||d||^-2 = K(v/(1-rho) + m^2/s) and cos = (1 + (v/m^2) s/(1-rho))^-1/2."""
    count, losses = 10, torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
    rates = losses**gamma
    m, v, s = rates.mean(), rates.var(correction=0), 1 + (count - 1) * rho
    updates = torch.linalg.cholesky((1 - rho) * torch.eye(count, dtype=torch.float64) + rho)
    direction = solve(updates, losses, gamma)
    length = (count * (v / (1 - rho) + m**2 / s)) ** -0.5
    mean_length = math.sqrt(s / count)  # ||mean||^2 = (K + K (K - 1) rho) / K^2
    assert direction.info["cos_mean"] == pytest.approx(float((1 + v / m**2 * s / (1 - rho)) ** -0.5), rel=1e-9)
    assert direction.info["norm_ratio"] == pytest.approx(float(length) / mean_length, rel=1e-9)
    negative = int((rates < rho * count * m / s).sum())
    assert int((direction.weights < 0).sum()) == negative


def test_nearly_parallel_updates_with_unequal_losses_nearly_cancel() -> None:
    """Five degrees, f = (1, 2): G x = f gives x = (1, (2 - cos) / sin) and ||d|| = 1 / ||x||."""
    cosine, sine = math.cos(math.radians(5)), math.sin(math.radians(5))
    direction = solve([[1.0, 0.0], [cosine, sine]], [1.0, 2.0])
    assert float(direction.vector.norm()) == pytest.approx(1 / math.hypot(1, (2 - cosine) / sine), rel=1e-9)
    assert (direction.weights * tensor([1.0, 2.0])).tolist() == pytest.approx([-0.98, 1.98], abs=5e-3)
    assert direction.info["cos_mean"] == pytest.approx(0.13, abs=5e-3)
    assert direction.info["weight_min"] == pytest.approx(float(direction.weights.min()))


def test_duplicate_clients_with_equal_losses_count_once() -> None:
    updates, losses = normal(6, 3, 8), losses_of(6, 3)
    twice = solve(updates[[0, 1, 2, 1]], losses[[0, 1, 2, 1]])
    torch.testing.assert_close(twice.vector, solve(updates, losses).vector, rtol=1e-9, atol=1e-10)
    assert twice.info["mode"] == "exact"


def test_without_negative_weights_it_is_the_shortest_convex_combination_of_scaled_gradients() -> None:
    updates, losses = normal(7, 3, 200), losses_of(7, 3)
    direction = solve(updates, losses)
    assert direction.weights.min() > 0
    scaled = (updates / losses[:, None]).numpy()
    convex = oracles.min_norm_by_enumeration(scaled) @ scaled
    torch.testing.assert_close(direction.vector, tensor(convex), rtol=0, atol=1e-10)


# scales


def test_raw_shrinks_as_losses_grow() -> None:
    """f = s f_0 with gamma = 1 divides d by s."""
    updates, losses = normal(8, 4, 9), losses_of(8, 4)
    torch.testing.assert_close(
        solve(updates, 5 * losses).vector, solve(updates, losses).vector / 5, rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_scales_differ_by_the_factor_that_names_them(gamma: float) -> None:
    """c -> c / a multiplies d by a: a = min c, mean c, or whatever gives the length of the mean update."""
    updates, losses = normal(9, 4, 9), losses_of(9, 4)
    rates, raw = losses**gamma, solve(updates, losses, gamma).vector
    close = {"rtol": 1e-10, "atol": 1e-13}
    torch.testing.assert_close(solve(updates, losses, gamma, "min").vector, rates.min() * raw, **close)
    torch.testing.assert_close(solve(updates, losses, gamma, "mean").vector, rates.mean() * raw, **close)
    expected = raw * updates.mean(0).norm() / raw.norm()
    torch.testing.assert_close(solve(updates, losses, gamma, "norm").vector, expected, **close)


@pytest.mark.parametrize("scale", ["min", "mean", "norm"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_constant_factor_on_all_losses_changes_nothing(scale: str, gamma: float) -> None:
    updates, losses = normal(10, 5, 9), losses_of(10, 5)
    torch.testing.assert_close(
        solve(updates, 1e-4 * losses, gamma, scale).vector,
        solve(updates, losses, gamma, scale).vector,
        rtol=1e-9,
        atol=1e-12,
    )


def test_norm_keeps_the_length_of_fedavgs_step() -> None:
    updates, losses, shares = normal(11, 5, 9), losses_of(11, 5), tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    direction = AdaFed(scale="norm").direction(Cohort.of(updates, losses, shares))
    assert float(direction.vector.norm()) == pytest.approx(float((shares @ updates).norm()), rel=1e-10)


def test_norm_ratio_compares_with_the_plain_mean_update() -> None:
    updates, losses = normal(11, 5, 9), losses_of(11, 5)
    direction = AdaFed(scale="norm").direction(Cohort.of(updates, losses))
    assert direction.info["norm_ratio"] == pytest.approx(1.0, rel=1e-9)


def test_per_step_makes_a_long_update_count_as_a_short_one_of_more_steps() -> None:
    """<d, u_k> = c_k s_k ||d||^2 means <d, u_k / s_k> = c_k ||d||^2: the direction of the per-step updates."""
    updates, losses, steps = normal(11, 5, 9), losses_of(11, 5), tensor([1.0, 2.0, 4.0, 8.0, 3.0])
    long = Cohort.of(updates * steps[:, None], losses, steps=steps)
    ours = AdaFed(scale="raw").direction(long).vector
    plain = AdaFed(scale="raw").direction(Cohort.of(updates, losses)).vector
    torch.testing.assert_close(ours / ours.norm(), plain / plain.norm())
    literal = AdaFed(scale="raw", per_step=False).direction(long).vector
    torch.testing.assert_close(long.updates @ literal, losses * (literal @ literal))


def test_min_weighs_orthonormal_updates_by_the_loss_over_the_smallest() -> None:
    """u = c / min c = (1, 2, 4), weights u / sum u^2 = u / 21."""
    weights = solve(torch.eye(3, dtype=torch.float64), [0.3, 0.6, 1.2], 1.0, "min").weights
    torch.testing.assert_close(weights, tensor([1.0, 2.0, 4.0]) / 21)


def test_min_never_steps_further_than_the_easiest_client_would() -> None:
    """||d|| <= min_k ||g_k|| / u_k <= ||g_j|| for the client j with the smallest loss, where u_j = 1."""
    for seed in range(20):
        updates, losses = normal(seed, 4, 6), losses_of(seed, 4)
        length = solve(updates, losses, 1.0, "min").vector.norm()
        assert length <= updates[losses.argmin()].norm() * (1 + 1e-12)


def test_min_stands_still_when_one_client_is_fitted_perfectly() -> None:
    """d_min = min c * d_raw, and d_raw is finite here: as min c -> 0 the step vanishes."""
    vector = solve(normal(12, 3, 6), [0.0, 1.0, 2.0], 1.0, "min").vector
    torch.testing.assert_close(vector, torch.zeros(6, dtype=torch.float64))


def test_default_is_gamma_one_and_the_norm() -> None:
    updates, losses = normal(13, 4, 6), losses_of(13, 4)
    default = AdaFed().direction(Cohort.of(updates, losses)).vector
    torch.testing.assert_close(default, solve(updates, losses, 1.0, "norm").vector)


# descent on problems whose losses are known


class Quadratics:
    """f_k = (theta - b_k)' A_k (theta - b_k) / 2 + 0.1, with the largest eigenvalue over all clients L."""

    def __init__(self, seed: int, count: int, size: int) -> None:
        roots = normal(seed, count, size, size)
        self.curvatures = roots @ roots.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)
        self.optima = normal(seed + 1, count, size)
        self.smoothness = float(torch.linalg.eigvalsh(self.curvatures).max())

    def losses(self, theta: Tensor) -> Tensor:
        return (self.gradients(theta) * (theta - self.optima)).sum(1) / 2 + 0.1

    def gradients(self, theta: Tensor) -> Tensor:
        return (self.curvatures @ (theta - self.optima)[:, :, None])[:, :, 0]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_all_losses_fall_below_the_step_of_the_theorem(gamma: float, count: int) -> None:
    """f(theta - eta d) <= f - eta ||d||^2 (c - L eta / 2): all fall for eta < (2 / L) min c."""
    problem, theta = Quadratics(count, count, 12), 3 * normal(20, 12)
    for _ in range(15):
        losses = problem.losses(theta)
        direction = solve(problem.gradients(theta), losses, gamma)
        assert direction.info["mode"] == "exact"
        step = 1.9 / problem.smoothness * (losses**gamma).min()
        following = theta - step * direction.vector
        assert (problem.losses(following) < losses).all()
        theta = following


def test_scale_min_makes_the_theorems_step_independent_of_the_losses() -> None:
    """min (c / min c) = 1, hence eta < 2 / L, although the losses span three orders of magnitude."""
    problem, theta = Quadratics(7, 4, 12), 3 * normal(21, 12)
    problem.optima[1:] *= tensor([[3.0], [10.0], [0.3]])
    for _ in range(15):
        losses = problem.losses(theta)
        vector = solve(problem.gradients(theta), losses, 1.0, "min").vector
        following = theta - 1.9 / problem.smoothness * vector
        assert (problem.losses(following) < losses).all()
        theta = following


def test_more_clients_than_parameters_still_descend_while_they_can() -> None:
    """K = 5 in the plane, optima on one side: the convex fallback promises <d, g_k> >= c_k ||d||^2."""
    problem, theta = Quadratics(8, 5, 2), tensor([9.0, 9.0])
    for _ in range(5):
        losses = problem.losses(theta)
        direction = solve(problem.gradients(theta), losses)
        assert direction.info["mode"] == "convex"
        following = theta - 1.9 / problem.smoothness * losses.min() * direction.vector
        assert (problem.losses(following) < losses).all()
        theta = following


# degenerate rounds


@pytest.mark.parametrize("scale", SCALES)
def test_same_update_with_different_losses_still_moves(scale: str) -> None:
    """The fallback is g / max c with c = (1, 4) over 1, 1 or 2.5; "norm" gives the mean update itself."""
    update = tensor([3.0, -1.0])
    direction = solve(update.repeat(2, 1), [1.0, 4.0], 1.0, scale)
    factor = {"raw": 1 / 4, "min": 1 / 4, "mean": 2.5 / 4, "norm": 1.0}[scale]
    torch.testing.assert_close(direction.vector, factor * update, rtol=1e-8, atol=0)
    assert direction.info["mode"] == "convex"


@pytest.mark.parametrize("scale", SCALES)
def test_opposite_updates_stand_still(scale: str) -> None:
    direction = solve([[1.0, -2.0], [-1.0, 2.0]], [1.0, 3.0], 1.0, scale)
    assert direction.info["mode"] == "stationary"
    assert not direction.vector.any()
    assert not direction.weights.any()


@pytest.mark.parametrize("scale", ["raw", "min"])
def test_client_with_zero_update_is_left_out(scale: str) -> None:
    updates, losses = normal(14, 3, 6), tensor([1.0, 2.0, 3.0])
    updates[1] = 0.0
    direction = solve(updates, losses, 1.0, scale)
    torch.testing.assert_close(direction.vector, solve(updates[[0, 2]], losses[[0, 2]], 1.0, scale).vector)
    assert direction.weights[1] == 0


def test_client_with_zero_loss_is_held_in_place() -> None:
    updates, losses = normal(15, 3, 6), tensor([1.0, 0.0, 3.0])
    d = solve(updates, losses).vector
    torch.testing.assert_close(updates @ d, losses * (d @ d), rtol=1e-9, atol=1e-12)


def test_zero_loss_of_orthonormal_clients_leaves_the_other_alone() -> None:
    torch.testing.assert_close(solve(torch.eye(2), [0.0, 1.0]).vector, tensor([0.0, 1.0]))


@pytest.mark.parametrize("scale", SCALES)
def test_all_losses_zero_gives_a_finite_direction(scale: str) -> None:
    direction = solve(normal(16, 3, 6), torch.zeros(3), 1.0, scale)
    assert direction.vector.isfinite().all()


def test_gamma_zero_ignores_that_a_loss_is_zero() -> None:
    """0^0 = 1."""
    updates = normal(17, 3, 6)
    torch.testing.assert_close(
        solve(updates, [0.0, 1.0, 2.0], gamma=0.0).vector, solve(updates, [1.0, 1.0, 1.0]).vector
    )


@pytest.mark.parametrize("noise", [1e-2, 1e-3, 3e-4])
def test_nearly_parallel_float32_updates_keep_their_rates_to_storage(noise: float) -> None:
    """Rounding d once to float32 moves <d, g_k> by at most 2^-24 sum_i |d_i g_ki|."""
    updates, losses = (normal(18, 1, 200) + noise * normal(19, 6, 200)).float(), losses_of(18, 6)
    direction = AdaFed(scale="raw").direction(Cohort.of(updates, losses))
    d, rows = direction.vector.double(), updates.double()
    exact = tensor(oracles.exact_direction(updates.numpy(), losses.numpy()))
    slack = 2.0**-24 * (rows.abs() @ exact.abs()) + 1e-6 * losses * (exact @ exact)
    assert direction.vector.dtype == torch.float32
    assert direction.info["mode"] == "exact"
    assert (d - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert ((rows @ d - losses * (d @ d)).abs() <= 1.5 * slack + 2.0**-23 * losses * (d @ d)).all()


# the certificate


@pytest.mark.parametrize("scale", SCALES)
def test_record_says_what_the_direction_does(scale: str) -> None:
    updates, losses = normal(22, 5, 9) + 0.2, losses_of(22, 5)
    direction = solve(updates, losses, 1.0, scale)
    d, info, mean = direction.vector, direction.info, updates.mean(0)
    cosines = torch.nn.functional.normalize(updates, dim=1)
    assert info["descent_min"] == pytest.approx(float((updates @ d).min()), rel=1e-9)
    assert info["weight_min"] == pytest.approx(float(direction.weights.min()), rel=1e-9)
    assert info["cos_mean"] == pytest.approx(float(d @ mean / d.norm() / mean.norm()), rel=1e-9)
    assert info["norm_ratio"] == pytest.approx(float(d.norm() / mean.norm()), rel=1e-9)
    assert info["cond"] == pytest.approx(float(torch.linalg.cond(cosines @ cosines.T)), rel=1e-9)
    assert abs(info["rate_spread"]) < 1e-8


def test_record_shows_a_spread_of_rates_when_the_fallback_was_used() -> None:
    direction = solve([[1.0, 0.0], [1.0, 0.0]], [1.0, 4.0])
    assert direction.info["rate_spread"] > 0.1


# mistakes


def test_negative_loss_is_refused_by_client() -> None:
    with pytest.raises(ValueError, match=r"\b1\b"):
        solve(torch.eye(3), [1.0, -0.5, 2.0])


@pytest.mark.parametrize("options", [{"scale": "median"}, {"gamma": math.nan}, {"gamma": -1.0}])
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        AdaFed(**options)


def test_norm_settles_where_no_common_descent_is_left() -> None:
    """Almost opposite updates: the step of "mean" vanishes with their sum, and "norm" may not blow it up again."""
    for gap in (1e-3, 1e-5):
        updates = tensor([[1.0, gap], [-0.2, gap]])
        step = solve(updates, [1.0, 1.0], 1.0, "norm").vector.norm()
        assert step <= 10 * solve(updates, [1.0, 1.0], 1.0, "mean").vector.norm() * (1 + 1e-9)
        assert step < 20 * gap
