"""Projection to the simplex: optimality conditions, references by enumeration, closed forms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies.solvers import project_to_simplex
from tests.strategies import oracles
from tests.strategies.kkt import TOLERANCE
from tests.strategies.rows import (
    Array,
    normal,
    quick,
)

vectors = st.lists(st.one_of(st.floats(-3, 3), st.floats(-1e6, 1e6), st.just(0.5)), min_size=1, max_size=30)


def projected(vector: object) -> Array:
    return project_to_simplex(torch.tensor(np.asarray(vector), dtype=torch.float64)).numpy()


def nearest_by_enumeration(vector: Array) -> Array:
    """The nearest point with sum 1 and no negative coordinate, by trying every support; K <= 8, please."""
    best, best_distance = vector, math.inf
    for choice in product((False, True), repeat=len(vector)):
        inside = np.array(choice)
        if not inside.any():
            continue
        point = np.where(inside, vector + (1 - vector[inside].sum()) / inside.sum(), 0.0)
        distance = float(((point - vector) ** 2).sum())
        if point.min() >= 0 and distance < best_distance:
            best, best_distance = point, distance
    return best


@quick
@given(vectors)
def test_projection_satisfies_the_kkt_conditions(vector: list[float]) -> None:
    """w - v - t - p = 0 with p >= 0 and p w = 0: w - v is the same where w > 0 and no smaller elsewhere."""
    v = np.array(vector)
    w, size = projected(v), max(1.0, float(np.abs(v).max()))
    assert w.min() >= 0
    assert abs(w.sum() - 1) < TOLERANCE
    multipliers = (w - v) / size
    level = multipliers[w > TOLERANCE].mean()
    assert np.abs(multipliers[w > TOLERANCE] - level).max() < TOLERANCE
    assert np.minimum(np.abs(multipliers - level), w).max() < TOLERANCE
    assert (multipliers - level).min() > -TOLERANCE


@quick
@given(st.lists(st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6))
def test_projection_is_the_nearest_point_of_all_faces(vector: list[float]) -> None:
    np.testing.assert_allclose(projected(vector), nearest_by_enumeration(np.array(vector)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ([1.6, 0.4], [1.0, 0.0]),  # a threshold from one sum too early gives (1.1, 0)
        ([0.4, 1.6], [0.0, 1.0]),
        ([0.75, 0.25], [0.75, 0.25]),
        ([0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]),
        ([1.0, 0.5, -1.0], [0.75, 0.25, 0.0]),
        ([-5.0], [1.0]),
        ([3.0, 3.0, 1.0], [0.5, 0.5, 0.0]),
    ],
)
def test_projections_by_hand(vector: list[float], expected: list[float]) -> None:
    assert projected(vector).tolist() == expected


@quick
@given(st.integers(0, 2**32), st.integers(1, 50))
def test_projection_leaves_the_simplex_alone(seed: int, count: int) -> None:
    point = np.random.default_rng(seed).dirichlet(np.ones(count))
    np.testing.assert_allclose(projected(point), point, rtol=0, atol=1e-15)


def test_projection_ignores_a_common_shift_however_large() -> None:
    far = normal(65, 40) + 1e9
    np.testing.assert_allclose(projected(far), projected(far - 1e9), rtol=0, atol=1e-14)


def test_projection_of_a_thousand_numbers() -> None:
    vector = normal(63, 1000)
    np.testing.assert_allclose(projected(vector), oracles.onto_simplex(vector), rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [math.inf], [[0.5, 0.5]]])
def test_what_is_no_finite_vector_is_not_projected(bad: object) -> None:
    with pytest.raises(ValueError, match="v must be"):
        projected(bad)
