"""Optimality conditions of weights over the simplex and over boxes in it, and problems of every unpleasant kind."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from strategies.solvers import box_min_norm_weights
from tests.strategies.rows import (
    Array,
)

TOLERANCE = 1e-9


thorough = settings(max_examples=300, deadline=None, derandomize=True)


def boxed(gram: Array, lower: Array, upper: Array) -> Array:
    return box_min_norm_weights(
        torch.from_numpy(gram), torch.from_numpy(np.asarray(lower)), torch.from_numpy(np.asarray(upper))
    ).numpy()


def residual(gram: Array, weights: Array, lower: Array, upper: Array) -> float:
    """Largest violation of a Karush-Kuhn-Tucker condition of min w'Mw / 2, sum w = 1, lower <= w <= upper.

    With slopes M w / max |M| and multipliers t of the sum and p, q >= 0 of the bounds: slope - t - p + q = 0 and
    p (w - lower) = q (upper - w) = 0, a product counting as the smaller of its factors.
    """
    size = np.abs(gram).max()
    slope = gram @ weights / (size if size > 0 else 1.0)
    feasible = max(abs(weights.sum() - 1), (lower - weights).max(), (weights - upper).max())
    free = (weights - lower > TOLERANCE) & (upper - weights > TOLERANCE)
    if free.any():
        level = float(slope[free].mean())
    else:  # any level between the weights that would shrink and those that would grow
        grow, shrink = slope[upper - weights > TOLERANCE], slope[weights - lower > TOLERANCE]
        level = (
            float((grow.min(initial=np.inf) + shrink.max(initial=-np.inf)) / 2) if len(grow) and len(shrink) else 0
        )
        if not (len(grow) and len(shrink)):
            return float(feasible)
    low, high = np.maximum(slope - level, 0.0), np.maximum(level - slope, 0.0)
    stationary = np.abs(slope[free] - level).max(initial=0.0)
    complementary = max(np.minimum(low, weights - lower).max(), np.minimum(high, upper - weights).max())
    return float(max(feasible, stationary, complementary))


KINDS = ("plain", "whole", "repeated", "opposite", "lengths", "parallel", "cond", "zero", "rounding")


@st.composite
def grams(draw: st.DrawFn, most: int = 14) -> Array:
    """Gram matrices of every unpleasant kind."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, length = draw(st.integers(1, most)), draw(st.integers(1, most))
    rows = generator.normal(size=(count, length))
    kind = draw(st.sampled_from(KINDS))
    if kind == "whole":
        rows = generator.integers(-2, 3, size=(count, length)).astype(np.float64)
    elif kind == "repeated":
        rows = rows[generator.integers(0, max(1, count // 2), size=count)]
    elif kind == "opposite":
        rows = np.vstack([rows, -rows])[:: max(1, count // 4)][:count]
    elif kind == "lengths":
        rows *= 10.0 ** generator.integers(-6, 7, size=len(rows))[:, None]
    elif kind == "parallel":
        rows = rows[:1] + 10.0 ** draw(st.integers(-16, -1)) * rows
    elif kind == "cond":
        rows = np.linalg.qr(generator.normal(size=(count, count)))[0] * np.logspace(0, -6, count)
    elif kind == "zero":
        rows[generator.integers(0, count, size=max(1, count // 2))] = 0.0
    gram = rows @ rows.T * 10.0 ** draw(st.sampled_from([-20, 0, 0, 0, 20]))
    if kind == "rounding":  # repeated rows, and products that err by more than the rows differ
        rows = (
            rows[generator.integers(0, max(1, count // 2), size=count)] + 10.0 ** draw(st.integers(-16, -6)) * rows
        )
        noise = 1 + 1e-15 * generator.normal(size=(count, count))
        gram = rows @ rows.T * (noise + noise.T) / 2
    return np.asarray(gram)


@st.composite
def boxes(draw: st.DrawFn, count: int) -> tuple[Array, Array]:
    """Bounds around feasible weights, as FedMGDA+ has them, or looser on a side, or with weights that are fixed."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    centre = generator.dirichlet(np.ones(count)) if draw(st.booleans()) else np.full(count, 1.0 / count)
    epsilon = draw(st.sampled_from([0.0, 1e-9, 1e-3, 0.3 / count, 1.0 / count, 0.1, 0.5, 1.0]))
    lower, upper = np.maximum(centre - epsilon, 0.0), np.minimum(centre + epsilon, 1.0)
    side = draw(st.sampled_from(["both", "lower", "upper", "fixed"]))
    if side == "lower":
        upper = np.ones(count)
    elif side == "upper":
        lower = np.zeros(count)
    elif side == "fixed":
        some = generator.random(count) < 0.4
        lower[some] = upper[some] = centre[some]
    return lower, upper


@st.composite
def problems(draw: st.DrawFn, most: int = 14) -> tuple[Array, Array, Array]:
    gram = draw(grams(most))
    return gram, *draw(boxes(len(gram)))
