"""L-BFGS against dense BFGS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.quasi_newton import accept, inverse_hessian_product, quasi_newton_rate
from tests.strategies import oracles

Array = NDArray[np.float64]
SIZE = 8


def curvature(seed: int) -> Array:
    root = np.random.default_rng(seed).normal(size=(SIZE, SIZE))
    return root @ root.T / SIZE + 0.2 * np.eye(SIZE)


def pairs_of(seed: int, count: int) -> list[tuple[Array, Array]]:
    """Steps s and gradient changes y = A s of one convex quadratic, oldest first."""
    steps = np.random.default_rng(seed + 100).normal(size=(count, SIZE))
    return [(s, curvature(seed) @ s) for s in steps]


def tensors(pairs: list[tuple[Array, Array]]) -> list[tuple[Tensor, Tensor]]:
    return [(torch.from_numpy(s), torch.from_numpy(y)) for s, y in pairs]


def start_of(pairs: list[tuple[Array, Array]]) -> Array:
    """H0 = (s'y / y'y) I of the newest pair."""
    s, y = pairs[-1]
    return s @ y / (y @ y) * np.eye(SIZE)


def inverse_as_matrix(pairs: list[tuple[Array, Array]]) -> Array:
    columns = [inverse_hessian_product(tensors(pairs), unit).numpy() for unit in torch.eye(SIZE).double()]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_two_loops_equal_dense_bfgs_on_all_pairs(count: int) -> None:
    pairs = pairs_of(count, count)
    dense = oracles.bfgs_inverse(pairs, start_of(pairs))
    np.testing.assert_allclose(inverse_as_matrix(pairs), dense, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_it_inverts_the_direct_update(count: int) -> None:
    """B from the direct form (19) started at B0 = H0^-1: H B = I."""
    pairs = pairs_of(10 + count, count)
    direct = oracles.bfgs_hessian(pairs, np.linalg.inv(start_of(pairs)))
    np.testing.assert_allclose(inverse_as_matrix(pairs) @ direct, np.eye(SIZE), atol=1e-9)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_secant_condition_holds_for_the_newest_pair(count: int) -> None:
    """B s = y, that is H y = s."""
    pairs = tensors(pairs_of(20 + count, count))
    s, y = pairs[-1]
    torch.testing.assert_close(inverse_hessian_product(pairs, y), s, rtol=1e-9, atol=1e-11)


def test_conjugate_steps_reveal_the_whole_hessian() -> None:
    """Steps along all eigenvectors of A: H = A^-1, so the product is the Newton step and g'Hg its rate."""
    matrix = curvature(30)
    pairs = tensors([(vector, matrix @ vector) for vector in np.linalg.eigh(matrix)[1].T])
    gradient = torch.from_numpy(np.random.default_rng(30).normal(size=SIZE))
    newton = torch.linalg.solve(torch.from_numpy(matrix), gradient)
    torch.testing.assert_close(inverse_hessian_product(pairs, gradient), newton, rtol=1e-9, atol=1e-11)
    assert quasi_newton_rate(pairs, gradient) == pytest.approx(float(gradient @ newton), rel=1e-10)


def test_without_pairs_the_product_is_the_vector_itself() -> None:
    vector = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert torch.equal(inverse_hessian_product([], vector), vector)
    assert quasi_newton_rate([], vector) == 14.0


def test_the_vector_and_the_pairs_are_left_alone() -> None:
    pairs, vector = tensors(pairs_of(31, 3)), torch.ones(SIZE, dtype=torch.float64)
    before = [(s.clone(), y.clone()) for s, y in pairs]
    inverse_hessian_product(pairs, vector)
    quasi_newton_rate(pairs, vector)
    assert torch.equal(vector, torch.ones(SIZE, dtype=torch.float64))
    assert all(torch.equal(s, t) and torch.equal(y, z) for (s, y), (t, z) in zip(pairs, before, strict=True))


def test_product_is_linear_and_symmetric() -> None:
    matrix = inverse_as_matrix(pairs_of(32, 4))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-11)
    vector = torch.arange(1.0, SIZE + 1, dtype=torch.float64)
    product = inverse_hessian_product(tensors(pairs_of(32, 4)), vector)
    np.testing.assert_allclose(product.numpy(), matrix @ vector.numpy(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", range(5))
def test_rate_is_positive_with_accepted_pairs_whatever_the_gradient(seed: int) -> None:
    """Pairs of a function that is not convex, filtered by the test: B > 0, hence c = g' B^-1 g > 0."""
    random = np.random.default_rng(seed)
    candidates = tensors([(random.normal(size=SIZE), random.normal(size=SIZE)) for _ in range(12)])
    pairs = [pair for pair in candidates if accept(*pair)]
    assert 0 < len(pairs) < 12
    gradient = torch.from_numpy(random.normal(size=SIZE))
    dense = oracles.bfgs_inverse([(s.numpy(), y.numpy()) for s, y in pairs], start_of(_arrays(pairs)))
    rate = quasi_newton_rate(pairs, gradient)
    assert rate > 0
    assert rate == pytest.approx(float(gradient.numpy() @ dense @ gradient.numpy()), rel=1e-6)


def _arrays(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Array, Array]]:
    return [(s.numpy(), y.numpy()) for s, y in pairs]


@pytest.mark.parametrize(
    ("s", "y", "accepted"),
    [
        ([1.0, 0.0], [2.0, 5.0], True),
        ([1.0, 0.0], [-2.0, 5.0], False),
        ([1.0, 0.0], [0.0, 5.0], False),
        ([0.0, 0.0], [1.0, 1.0], False),
        ([1.0, 1.0], [0.0, 0.0], False),
        ([1.0, 0.0], [2e-10, 1.0], True),
        ([1.0, 0.0], [5e-11, 1.0], False),
        ([1e-8, 0.0], [1e-8, 0.0], True),
    ],
)
def test_only_pairs_of_positive_curvature_are_accepted(s: list[float], y: list[float], accepted: bool) -> None:
    """s'y > 1e-10 ||s|| ||y||: a statement about the angle, so short steps pass."""
    assert accept(torch.tensor(s).double(), torch.tensor(y).double()) is accepted


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_acceptance_ignores_the_lengths(scale: float) -> None:
    s, y = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, -0.5]).double()
    assert accept(scale * s, y)
    assert accept(s, scale * y)
    assert not accept(scale * s, -y)


def test_pairs_that_are_not_finite_are_not_accepted() -> None:
    good, bad = torch.ones(2).double(), torch.tensor([1.0, float("nan")]).double()
    assert not accept(good, bad)
    assert not accept(bad, good)


def test_rate_of_long_float32_gradients_is_summed_in_float64() -> None:
    gradient = torch.ones(262_147)
    gradient[0] = 4096.0  # its square swallows ones in a float32 sum
    rate = quasi_newton_rate([], gradient)
    assert isinstance(rate, float)
    assert rate == pytest.approx(4096.0**2 + 262_146, rel=1e-13)


def test_float32_pairs_give_the_rate_of_their_float64_values() -> None:
    pairs = [(s.float(), y.float()) for s, y in tensors(pairs_of(33, 4))]
    gradient = torch.ones(SIZE)
    wide = [(s.double().numpy(), y.double().numpy()) for s, y in pairs]
    dense = oracles.bfgs_inverse(wide, start_of(wide))
    assert quasi_newton_rate(pairs, gradient) == pytest.approx(float(dense.sum()), rel=1e-10)
