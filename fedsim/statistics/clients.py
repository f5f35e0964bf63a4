"""Comparisons without a test: how many clients gain, and which methods nobody beats in both of two measures."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedsim.statistics.rounding import differences, merged, tolerance


class Wins(NamedTuple):
    """Shares of clients, which add up to 1; NaN where no client has both values.

    Attributes:
        better: Share of clients whose value is higher than under the baseline.
        equal: Share with the same value, up to rounding.
        worse: Share with a lower value.
    """

    better: float
    equal: float
    worse: float


def wins(method: ArrayLike, baseline: ArrayLike) -> Wins:
    """Count clients that are better off than under the baseline, of those with a value under both.

    Args:
        method: [K] a value for each client, higher is better; NaN for a client without one.
        baseline: [K] the same under the baseline.

    Raises:
        ValueError: If the two are not vectors of one length, or hold infinity.

    >>> wins([0.9, 0.5, 0.7, float("nan")], [0.8, 0.5, 0.6, 0.1])
    Wins(better=0.6666666666666666, equal=0.3333333333333333, worse=0.0)
    """
    ours, theirs = (np.asarray(each, dtype=np.float64) for each in (method, baseline))
    if ours.ndim != 1 or ours.shape != theirs.shape:
        raise ValueError(f"wins: both need one value for each client, got shapes {ours.shape} and {theirs.shape}")
    if np.isinf(ours).any() or np.isinf(theirs).any():
        raise ValueError("wins: values must be finite, got infinity; leave out clients that diverged, or say NaN")
    both = ~(np.isnan(ours) | np.isnan(theirs))
    if not both.any():
        return Wins(math.nan, math.nan, math.nan)
    change = differences(ours[both], theirs[both])
    return Wins(float(np.mean(change > 0)), float(np.mean(change == 0)), float(np.mean(change < 0)))


def pareto(points: ArrayLike) -> NDArray[np.bool_]:
    """Return which points [M, 2] no other point beats: as good in both and better in one. Higher is better in both.

    Equal points (up to rounding) do not beat each other.

    Raises:
        ValueError: If the points are not [M, 2] or not finite.

    >>> pareto([[0.9, 0.5], [0.8, 0.7], [0.8, 0.6]])
    array([ True,  True, False])
    """
    given = np.asarray(points, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] != 2:
        raise ValueError(f"pareto: points must be [M, 2], got shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("pareto: points must be finite; leave out methods without both measures")
    if not len(given):
        return np.zeros(0, dtype=np.bool_)
    settled = np.stack([merged(column, tolerance(column)) for column in given.T], axis=1)
    others, each = settled[:, None, :], settled[None, :, :]
    beaten = ((others >= each).all(axis=2) & (others > each).any(axis=2)).any(axis=0)
    return np.asarray(~beaten, dtype=np.bool_)
