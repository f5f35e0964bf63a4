"""Weights over the simplex: optimality conditions, references by enumeration, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from strategies.solvers import common_descent, min_norm_weights
from tests.strategies import oracles
from tests.strategies.kkt import TOLERANCE, boxed, grams, residual, thorough
from tests.strategies.rows import (
    Array,
    inner,
    matrices,
    normal,
    quick,
    shortest,
)

# the conditions themselves


def test_the_conditions_reject_weights_that_are_not_optimal() -> None:
    """Rows e_1 and 2 e_2: (0.8, 0.2) is best, and of what is allowed when the first is at most 0.6, (0.6, 0.4)."""
    gram, zero, one, tight = np.diag([1.0, 4.0]), np.zeros(2), np.ones(2), np.array([0.6, 1.0])
    assert residual(gram, np.array([0.8, 0.2]), zero, one) < TOLERANCE
    assert residual(gram, np.array([0.6, 0.4]), zero, tight) < TOLERANCE
    assert residual(gram, np.array([0.8001, 0.1999]), zero, one) > 1e-5
    assert residual(gram, np.array([0.59, 0.41]), zero, tight) > 1e-3
    assert residual(gram, np.array([0.8, 0.2]), zero, tight) > 0.1
    assert residual(gram, np.array([0.8, 0.1]), zero, one) > 0.05
    assert residual(gram, np.array([1.0, 0.0]), zero, one) > 0.1
    assert residual(gram, np.array([0.0, 1.0]), zero, one) > 0.1


# the shortest point of a convex hull


@thorough
@given(grams())
def test_min_norm_satisfies_the_kkt_conditions(gram: Array) -> None:
    weights = min_norm_weights(torch.from_numpy(gram)).numpy()
    assert weights.min() >= 0
    assert residual(gram, weights, np.zeros(len(gram)), np.ones(len(gram))) < TOLERANCE


@quick
@given(matrices())
def test_min_norm_satisfies_the_optimality_conditions(rows: Array) -> None:
    """w in the simplex is optimal iff <d, g_k> >= ||d||^2 for every k."""
    weights = shortest(rows)
    assert weights.shape == (len(rows),)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    d = weights @ rows
    assert (rows @ d).min() >= d @ d - 1e-9 * (rows**2).sum(1).max()


@quick
@given(matrices())
def test_min_norm_is_as_short_as_the_best_face(rows: Array) -> None:
    best = oracles.min_norm_by_enumeration(rows) @ rows
    d = shortest(rows) @ rows
    assert d @ d == pytest.approx(best @ best, abs=1e-9 * (rows**2).sum(1).max() + 1e-300)


@pytest.mark.parametrize("seed", range(8))
def test_min_norm_of_two_points_is_the_clipped_ratio(seed: int) -> None:
    """lambda_1 = clip(<g_2 - g_1, g_2> / ||g_1 - g_2||^2, 0, 1)."""
    first, second = rows = normal(seed, 2, 2) + 0.5
    expected = np.clip((second - first) @ second / ((first - second) @ (first - second)), 0, 1)
    np.testing.assert_allclose(shortest(rows), [expected, 1 - expected], rtol=0, atol=1e-12)


def test_min_norm_of_orthogonal_rows_weighs_by_inverse_squares() -> None:
    """Stationarity w_k ||g_k||^2 = const; here 1, 1/4, 1/16, divided by their sum 21/16."""
    np.testing.assert_allclose(shortest(np.diag([1.0, 2.0, 4.0])), np.array([16, 4, 1]) / 21, rtol=1e-12)


def test_min_norm_of_one_point_is_that_point() -> None:
    assert shortest(np.array([[3.0, 4.0]])).tolist() == [1.0]


def test_min_norm_puts_all_weight_on_a_vertex_that_is_closest() -> None:
    np.testing.assert_allclose(shortest(np.array([[1.0, 0.0], [3.0, 1.0], [2.0, -5.0]])), [1, 0, 0], atol=1e-12)


def test_min_norm_finds_the_origin_when_a_row_is_zero() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(shortest(rows) @ rows, 0, atol=1e-9)


def test_min_norm_finds_the_origin_inside_the_hull() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
    np.testing.assert_allclose(shortest(rows), [0.5, 0.25, 0.25], atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e4, 1e12])
def test_min_norm_weights_ignore_the_common_scale(scale: float) -> None:
    rows = normal(5, 5, 9) + 0.4
    np.testing.assert_allclose(shortest(scale * rows), shortest(rows), rtol=0, atol=1e-10)


def test_min_norm_follows_a_permutation() -> None:
    rows, order = normal(6, 6, 9) + 0.3, [3, 0, 5, 1, 4, 2]
    np.testing.assert_allclose(shortest(rows[order]), shortest(rows)[order], rtol=0, atol=1e-10)


def test_min_norm_of_rows_of_very_different_lengths() -> None:
    rows = normal(7, 6, 8) * np.logspace(-3, 3, 6)[:, None]
    d, best = shortest(rows) @ rows, oracles.min_norm_by_enumeration(rows) @ rows
    np.testing.assert_allclose(d, best, rtol=0, atol=1e-9 * np.linalg.norm(best))


@pytest.mark.parametrize(("count", "length"), [(100, 300), (60, 10), (100, 100)])
def test_min_norm_of_many_points(count: int, length: int) -> None:
    rows = normal(8, count, length) + 0.3
    d = shortest(rows) @ rows
    assert (rows @ d).min() >= d @ d - 1e-9 * (rows**2).sum(1).max()


# threads


def test_the_number_of_threads_is_afterwards_what_it_was() -> None:
    before, rows = torch.get_num_threads(), normal(64, 5, 9)
    torch.set_num_threads(before + 1)
    shortest(rows)
    boxed(rows @ rows.T, np.full(5, 0.1), np.full(5, 0.3))
    common_descent(inner(rows), torch.ones(5))
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before + 1


# mistakes


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_input_is_refused(bad: float) -> None:
    matrix, rates = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    broken_matrix, broken_rates = matrix.clone(), rates.clone()
    broken_matrix[0, 1] = broken_matrix[1, 0] = bad
    broken_rates[1] = bad
    with pytest.raises(ValueError):
        common_descent(broken_matrix, rates)
    with pytest.raises(ValueError):
        common_descent(matrix, broken_rates)


def test_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError):
        common_descent(torch.eye(2, dtype=torch.float64), torch.tensor([1.0, -0.1], dtype=torch.float64))
