"""A method against a baseline over the same pairs: difference, intervals, effect sizes and two tests.

Degenerate samples are defined, and never in favour of a claim:

* fewer than 2 pairs: the mean is that of what there is, everything else is NaN;
* all differences 0: p = 1, effects 0;
* all differences equal and not 0: Student's t is infinite and its p would be 0. The p is that of the exact
  sign-flip test instead, 2 / 2^n, which n pairs cannot beat without a scale to measure by.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from fedsim.statistics.intervals import Interval, summary
from fedsim.statistics.rounding import Floats, differences, vector

_EXACT = 50
"""Pairs up to which the distribution of signed ranks is exact; beyond, it is normal to 3 digits."""


class Test(NamedTuple):
    """A two-sided test.

    Attributes:
        statistic: Of the test.
        p: Probability of a statistic at least as extreme if there is no difference.
    """

    statistic: float
    p: float


class Paired(NamedTuple):
    """What n pairs say about a method against its baseline.

    Attributes:
        n: Number of pairs.
        mean: Mean of values - baseline.
        std: Standard deviation of the differences, divided by n - 1.
        interval: Bootstrap interval of the mean difference over pairs.
        t_interval: Student's interval of the mean difference.
        effect_size: Hedges-corrected d_z, J(n - 1) mean / std; signed infinity where all differences are
            equal and not 0, NaN for 2 pairs, of which the correction leaves nothing.
        rank_biserial: Matched-pairs rank-biserial correlation, -1 to 1.
        t: Paired t test; the statistic is infinite where the differences have no spread.
        wilcoxon: Wilcoxon's signed-rank test; the statistic is the smaller sum of ranks.
    """

    n: int
    mean: float
    std: float
    interval: Interval
    t_interval: Interval
    effect_size: float
    rank_biserial: float
    t: Test
    wilcoxon: Test


def paired(values: ArrayLike, baseline: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Paired:
    """Compare a method with a baseline, pair by pair.

    Args:
        values: [n] of the method.
        baseline: [n] of the baseline on the same pairs.
        level: Of the intervals.
        seed: Of the resampling.

    Raises:
        ValueError: If the two are not vectors of one length, or hold NaN or infinity.

    >>> found = paired([0.8, 0.9, 0.7], [0.8, 0.9, 0.7])
    >>> found.mean, found.effect_size, found.t.p
    (0.0, 0.0, 1.0)
    """
    ours, theirs = vector(values, "paired"), vector(baseline, "paired")
    if ours.shape != theirs.shape:
        raise ValueError(
            f"paired: both need a value for each pair, got {len(ours)} and {len(theirs)}; drop pairs without both"
        )
    change = np.sort(differences(ours, theirs))
    n, mean, std, interval, t_interval = summary(change, 0.0, level=level, seed=seed)
    if n < 2:
        unknown = Test(math.nan, math.nan)
        return Paired(n, mean, std, interval, t_interval, math.nan, math.nan, unknown, unknown)
    statistic, p = t_tests(change)
    effect = _effect_size(n, mean, std)
    up, down = _rank_sums(change)
    correlation = (up - down) / (up + down) if up + down else 0.0
    return Paired(
        n,
        mean,
        std,
        interval,
        t_interval,
        effect,
        correlation,
        Test(float(statistic), float(p)),
        Test(min(up, down), wilcoxon_p(change)),
    )


def t_tests(change: Floats) -> tuple[Floats, Floats]:
    """Return statistic and two-sided p of Student's paired t test for each column.

    Args:
        change: [n >= 2, ...] differences, of which those that are equal are so to the bit.
    """
    columns = change.reshape(len(change), -1)
    first = columns[0]
    statistic = np.where(first == 0, 0.0, np.copysign(np.inf, first))
    p = np.where(first == 0, 1.0, smallest_wilcoxon_p(len(change)))
    varied = (columns != first).any(axis=0)
    if varied.any():
        found = stats.ttest_1samp(columns[:, varied], 0.0, axis=0)
        statistic[varied], p[varied] = found.statistic, found.pvalue
    return statistic.reshape(change.shape[1:]), p.reshape(change.shape[1:])


def wilcoxon_p(change: Floats) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test (Biometrics Bulletin, 1945), zeros left out as there.

    Exact for up to 50 differences, by the normal approximation beyond.
    """
    moved = change[change != 0]
    if not len(moved):
        return 1.0
    if len(moved) > _EXACT:
        return min(1.0, float(stats.wilcoxon(moved, method="approx").pvalue))
    if len(np.unique(np.abs(moved))) < len(moved):
        return _tied_wilcoxon_p(moved)
    return min(1.0, float(stats.wilcoxon(moved, method="exact").pvalue))


def _tied_wilcoxon_p(moved: Floats) -> float:
    """Return the exact p under ties, for which SciPy has an approximation or the slow way of trying every sign."""
    doubled = np.rint(2 * stats.rankdata(np.abs(moved))).astype(int)  # shared ranks are halves
    chances = np.ones(1)  # of each sum of doubled ranks, as one rank after the other gets its sign
    for rank in doubled:
        silent = np.zeros(rank)
        chances = (np.concatenate([chances, silent]) + np.concatenate([silent, chances])) / 2
    up = int(doubled[moved > 0].sum())
    return min(1.0, 2 * float(chances[: min(up, int(doubled.sum()) - up) + 1].sum()))


def smallest_wilcoxon_p(n: int) -> float:
    """Return the smallest two-sided p that n pairs can give in Wilcoxon's test: 2 / 2^n, when all have one sign.

    >>> smallest_wilcoxon_p(5), smallest_wilcoxon_p(6)
    (0.0625, 0.03125)
    """
    if n < 0:
        raise ValueError(f"smallest_wilcoxon_p: n must be a number of pairs, got {n}")
    return min(1.0, 2.0 ** (1 - n))


def _effect_size(n: int, mean: float, std: float) -> float:
    """Return d_z with Hedges' exact correction J(m) = G(m/2) / (sqrt(m/2) G((m-1)/2)), m = n - 1 (1981, eq. 6e)."""
    if std == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    if n == 2:
        return math.nan
    half = (n - 1) / 2
    correction = math.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / math.sqrt(half)
    return correction * mean / std


def _rank_sums(change: Floats) -> tuple[float, float]:
    """Return the sums of the ranks of positive and of negative differences (Kerby, 2014: simple difference)."""
    moved = change[change != 0]
    if not len(moved):
        return 0.0, 0.0
    rank = stats.rankdata(np.abs(moved))
    return float(rank[moved > 0].sum()), float(rank[moved < 0].sum())
