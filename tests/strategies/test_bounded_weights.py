"""Weights over boxes in the simplex: optimality conditions, references by enumeration, closed forms."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strategies import solvers
from strategies.solvers import min_norm_weights
from tests.strategies.kkt import TOLERANCE, boxed, boxes, grams, problems, residual, thorough
from tests.strategies.rows import (
    Array,
    inner,
    matrices,
    normal,
    quick,
)


def by_enumeration(rows: Array, lower: Array, upper: Array) -> float:
    """The least ||w @ rows||: each weight at its lower bound, its upper one and between, for small K."""
    best = math.inf
    for choice in product((0, 1, 2), repeat=len(rows)):
        where = np.array(choice)
        weights = np.select([where == 0, where == 1], [lower, upper], 0.0)
        free, rest = np.flatnonzero(where == 2), 1.0 - weights.sum()
        if len(free) == 0 and abs(rest) > 1e-12:
            continue
        if len(free):
            base, others = free[0], free[1:]
            fixed = weights @ rows + rest * rows[base]
            moved = np.linalg.lstsq((rows[others] - rows[base]).T, -fixed, rcond=1e-12)[0]
            weights[others], weights[base] = moved, rest - moved.sum()
        if (weights >= lower - 1e-12).all() and (weights <= upper + 1e-12).all():
            best = min(best, float(np.linalg.norm(weights @ rows)))
    return best


@thorough
@given(problems())
def test_bounded_weights_satisfy_the_kkt_conditions(problem: tuple[Array, Array, Array]) -> None:
    gram, lower, upper = problem
    weights = boxed(gram, lower, upper)
    assert (lower <= weights).all()
    assert (weights <= upper).all()
    assert residual(gram, weights, lower, upper) < TOLERANCE


@thorough
@given(problems(most=60))
def test_more_bounded_weights_satisfy_the_kkt_conditions(problem: tuple[Array, Array, Array]) -> None:
    assert residual(problem[0], boxed(*problem), *problem[1:]) < TOLERANCE


@quick
@given(matrices().filter(lambda rows: len(rows) <= 5), st.data())
def test_bounded_weights_are_as_short_as_the_best_face(rows: Array, data: st.DataObject) -> None:
    lower, upper = data.draw(boxes(len(rows)))
    found = np.linalg.norm(boxed(rows @ rows.T, lower, upper) @ rows)
    assert found == pytest.approx(by_enumeration(rows, lower, upper), abs=1e-7, rel=1e-9)


@pytest.mark.parametrize("kind", ["random", "cond 1e12", "duplicates", "rank K/3", "lengths"])
@pytest.mark.parametrize("epsilon", [0.3, 0.9, 3.0])
@pytest.mark.parametrize("count", [30, 200])
def test_many_bounded_weights(kind: str, epsilon: float, count: int) -> None:
    rows = normal(count, count, 2 * count) + 0.3
    if kind == "cond 1e12":
        rows = np.linalg.qr(rows)[0] * np.logspace(0, -6, count)[:, None] @ np.linalg.qr(rows.T)[0].T
    elif kind == "duplicates":
        rows[1::2] = rows[::2]
    elif kind == "rank K/3":
        rows = rows[:, : count // 3]
    elif kind == "lengths":
        rows *= np.logspace(-4, 4, count)[:, None]
    lower, upper = np.full(count, max(0.0, (1 - epsilon) / count)), np.full(count, (1 + epsilon) / count)
    assert residual(rows @ rows.T, boxed(rows @ rows.T, lower, upper), lower, upper) < TOLERANCE


@quick
@given(grams(), st.integers(0, 2**32))
def test_a_box_of_one_point_is_that_point_bit_for_bit(gram: Array, seed: int) -> None:
    centre = np.random.default_rng(seed).dirichlet(np.ones(len(gram)))
    assert boxed(gram, centre, centre).tolist() == centre.tolist()


@quick
@given(grams())
def test_bounds_that_allow_everything_are_none(gram: Array) -> None:
    count = len(gram)
    free = min_norm_weights(torch.from_numpy(gram)).numpy()
    assert boxed(gram, np.zeros(count), np.ones(count)).tolist() == free.tolist()
    assert boxed(gram, np.full(count, -3.0), np.full(count, 7.0)).tolist() == free.tolist()


@pytest.mark.parametrize("most", [0.9, 0.8, 0.7, 0.5])
def test_two_bounded_weights_have_a_closed_form(most: float) -> None:
    """Rows e_1 and 2 e_2 would weigh 0.8 and 0.2."""
    found = boxed(np.diag([1.0, 4.0]), np.zeros(2), np.array([most, 1.0]))
    np.testing.assert_allclose(found, [min(most, 0.8), 1 - min(most, 0.8)], rtol=1e-14)


def test_bounded_weights_of_orthogonal_rows_are_filled_like_water() -> None:
    """w_k = clip(t / ||g_k||^2) with the t at which they sum to 1; here 0.3, t = 0.5, then 0.5 / 2 and 0.45."""
    found = boxed(np.diag([1.0, 2.0, 4.0]), np.array([0.0, 0.0, 0.45]), np.array([0.3, 1.0, 1.0]))
    np.testing.assert_allclose(found, [0.3, 0.25, 0.45], rtol=1e-13)


@pytest.mark.parametrize("lead", [1e-3, 1e-6, 1e-9])
def test_a_weight_with_little_to_gain_gains_it(lead: float) -> None:
    """Rows e_1 (at most 0.4), 2 e_2 and one whose slope is 1.2 lead less: it takes over 1.2 lead / (1 + lead^2)."""
    rows = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0 - lead, 1.0]])
    found = boxed(rows @ rows.T, np.zeros(3), np.array([0.4, 1.0, 1.0]))
    np.testing.assert_allclose(found[2], 1.2 * lead / (1 + lead**2), rtol=1e-4)
    assert found[0] == 0.4


def test_a_tighter_box_never_makes_the_direction_shorter() -> None:
    rows = normal(60, 12, 7) + 0.2
    lengths = []
    for epsilon in (0.0, 0.01, 0.03, 0.05, 0.1, 0.3, 1.0):
        weights = boxed(rows @ rows.T, np.full(12, 1 / 12 - epsilon), np.full(12, 1 / 12 + epsilon))
        assert np.abs(weights - 1 / 12).max() <= epsilon + 1e-16
        lengths.append(np.linalg.norm(weights @ rows))
    assert (np.diff(lengths) <= 1e-12).all()
    assert lengths[-1] < 0.5 * lengths[0]


@pytest.mark.parametrize("scale", [1e-150, 1e-12, 1e12, 1e150])
def test_bounded_weights_ignore_the_common_scale(scale: float) -> None:
    gram, lower, upper = inner(normal(61, 7, 9) + 0.4).numpy(), np.full(7, 0.05), np.full(7, 0.25)
    np.testing.assert_allclose(boxed(scale * gram, lower, upper), boxed(gram, lower, upper), rtol=0, atol=1e-12)


def test_bounded_weights_follow_a_permutation() -> None:
    gram, order = inner(normal(62, 6, 9) + 0.3).numpy(), [3, 0, 5, 1, 4, 2]
    lower, upper = np.array([0.0, 0.1, 0.0, 0.2, 0.0, 0.05]), np.array([0.2, 0.3, 0.25, 0.4, 0.1, 0.3])
    found = boxed(gram[np.ix_(order, order)], lower[order], upper[order])
    np.testing.assert_allclose(found, boxed(gram, lower, upper)[order], rtol=0, atol=1e-12)


def test_zero_gradients_get_any_weights_within_their_bounds() -> None:
    lower, upper = np.array([0.1, 0.0, 0.0]), np.array([0.2, 0.5, 0.9])
    found = boxed(np.zeros((3, 3)), lower, upper)
    assert (lower <= found).all()
    assert (found <= upper).all()
    assert found.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("seed", [392, 807, 1243])
def test_weights_that_are_equal_to_rounding_do_not_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows of very unequal lengths than dimensions: the origin is within reach in many ways."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(4, 14))
    rows = generator.normal(size=(count, 3)) * 10.0 ** generator.uniform(-4, 4, size=count)[:, None]
    steps, newton_step = [], solvers._newton_step

    def counted(*arguments: Any) -> Any:
        steps.append(None)
        return newton_step(*arguments)

    monkeypatch.setattr(solvers, "_newton_step", counted)
    boxed(rows @ rows.T, np.zeros(count), np.full(count, 2 / count))
    assert 0 < len(steps) < 4 * count


@pytest.mark.parametrize(
    ("lower", "upper", "message"),
    [
        ([0.2, 0.5], [0.1, 0.9], "lower must not be above upper, got 0.2 > 0.1"),
        ([0.0, 1.5], [1.0, 2.0], "row 1"),
        ([0.6, 0.5], [1.0, 1.0], "sum 1 must fit"),
        ([0.0, 0.0], [0.4, 0.5], "sum 1 must fit"),
        ([0.0, math.nan], [1.0, 1.0], "lower must be finite"),
        ([0.0, 0.0], [1.0, math.inf], "upper must be finite"),
        ([0.0], [1.0, 1.0], r"lower must be \[2\]"),
        ([0.0, 0.0], [[1.0, 1.0]], r"upper must be \[2\]"),
    ],
)
def test_bounds_that_no_weights_satisfy_are_refused(lower: object, upper: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boxed(np.eye(2), np.array(lower), np.array(upper))


def test_a_gram_matrix_that_is_not_finite_is_refused_with_bounds() -> None:
    with pytest.raises(ValueError, match="finite"):
        boxed(np.array([[1.0, math.nan], [math.nan, 1.0]]), np.zeros(2), np.ones(2))
