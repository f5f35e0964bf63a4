"""Intervals for a mean of few values.

The bootstrap here is the beta bootstrap t (Owen, "Better bootstrap t confidence intervals for the mean", 2025,
arXiv:2508.10083). Percentile and BCa bootstraps of 5 values cover the mean in 84 % of cases where they say 95; the
ordinary bootstrap t covers, and is infinitely wide as soon as 4 of 5 values are equal. docs/statistics.md has the
table.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedsim.statistics.rounding import Floats, tolerance, vector

RESAMPLES = 10_000
"""Of one interval. Half of them are the others read backwards: what is said of -x is then what is said of x."""

Interval = tuple[float, float]
_UNKNOWN: Interval = (math.nan, math.nan)


class Described(NamedTuple):
    """A mean and how well n values know it.

    Attributes:
        n: Number of values.
        mean: Their mean.
        std: Standard deviation, divided by n - 1; NaN for one value.
        interval: Bootstrap interval of the mean; NaN for fewer than 2 values.
        t_interval: Student's interval of the mean; NaN for fewer than 2 values.
    """

    n: int
    mean: float
    std: float
    interval: Interval
    t_interval: Interval


def describe(values: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Described:
    """Return mean, spread and intervals of values [n].

    Values that differ by rounding alone are equal; their std is 0 and their intervals are points. An infinite value
    (a diverged run's loss) makes the mean infinite and the rest NaN.

    Args:
        values: [n], without NaN.
        level: Share of studies whose interval is meant to contain the true mean.
        seed: Of the resampling. The result depends on it and on the set of values, not on their order.

    Raises:
        ValueError: If a value is NaN, or level is not between 0 and 1.

    >>> describe([0.5, 0.5, 0.5]).interval
    (0.5, 0.5)
    """
    sample = vector(values, "describe", finite=False)
    if np.isinf(sample).any():
        ends = set(sample[np.isinf(sample)].tolist())
        return Described(len(sample), ends.pop() if len(ends) == 1 else math.nan, math.nan, _UNKNOWN, _UNKNOWN)
    return summary(sample, tolerance(sample) if len(sample) else 0.0, level=level, seed=seed)


def summary(sample: Floats, within: float, *, level: float, seed: int) -> Described:
    """Return what `describe` does, for a checked sample whose values are equal if all lie within a distance."""
    if not 0 < level < 1:
        raise ValueError(f"statistics: level must be between 0 and 1, got {level}; use 0.95")
    n = len(sample)
    if not n:
        return Described(0, math.nan, math.nan, _UNKNOWN, _UNKNOWN)
    ascending = np.sort(sample)
    if n == 1:
        return Described(1, float(ascending[0]), math.nan, _UNKNOWN, _UNKNOWN)
    if ascending[-1] - ascending[0] <= within:
        middle = float(ascending[n // 2])
        return Described(n, middle, 0.0, (middle, middle), (middle, middle))
    mean, std = float(ascending.mean()), float(ascending.std(ddof=1))
    reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n)
    return Described(n, mean, std, beta_bootstrap_t(ascending, level, seed), (mean - reach, mean + reach))


def beta_bootstrap_t(ascending: Floats, level: float, seed: int) -> Interval:
    """Return the beta bootstrap t interval of the mean.

    A resample weighs the values by w_i / sum w with w_i from Beta(1/2, 3/2) instead of by how often each was
    drawn, so no resample has spread 0. With m* and s* its mean and standard deviation and q the quantiles of
    (m* - m) / s*, the interval is (m - q_high s, m - q_low s). The variance of s* is the weighted mean of
    squares; that of s divides by n - 1, not n: wider by sqrt(n / (n - 1)), for which skewed samples of 5 have use.

    Args:
        ascending: [n >= 2] sorted values, not all equal.
        level: Meant coverage.
        seed: Of the weights.
    """
    mean, std = ascending.mean(), ascending.std(ddof=1)
    standard = (ascending - mean) / std
    weights = _weights(len(ascending), seed)
    means = weights @ standard
    spreads = np.sqrt(np.einsum("bn,bn->b", weights, np.square(standard - means[:, None])))
    low, high = np.quantile(means / spreads, [(1 - level) / 2, (1 + level) / 2])
    return float(mean - high * std), float(mean - low * std)


@functools.lru_cache(maxsize=8)
def _weights(n: int, seed: int) -> Floats:
    generator = np.random.default_rng((seed, n))
    drawn = generator.beta(0.5, 1.5, size=(RESAMPLES // 2, n))
    drawn /= drawn.sum(axis=1, keepdims=True)
    result = np.concatenate([drawn, drawn[:, ::-1]])
    result.setflags(write=False)
    return result
