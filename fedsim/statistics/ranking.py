"""Methods ranked over data sets: Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fedsim.statistics.pairs import Test
from fedsim.statistics.rounding import Floats, merged, tolerance


class Ranks(NamedTuple):
    """Average ranks and who can be told apart.

    Attributes:
        average: [M] average rank of each method; 1 is the best possible, ties share their ranks.
        friedman: Friedman's test of "all methods are alike", p by chi squared with M - 1 degrees of freedom; NaN
            for fewer than 2 data sets or 3 methods.
        critical_difference: Two methods are told apart if their average ranks differ by this much; NaN for fewer
            than 2 data sets.
        cliques: Maximal sets of two or more methods not told apart, as column numbers, best first. All methods
            are one where Friedman's test does not reject.
    """

    average: Floats
    friedman: Test
    critical_difference: float
    cliques: tuple[tuple[int, ...], ...]


def ranks(table: ArrayLike, *, higher_is_better: bool, alpha: float = 0.05) -> Ranks:
    """Rank methods on each data set and say which differ over all of them.

    Args:
        table: [N, M] a number for each data set and method, such as the mean over pairs.
        higher_is_better: Which end gets rank 1.
        alpha: Family-wise level over all pairs of methods.

    Raises:
        ValueError: If the table is not [N >= 1, M >= 2] or has numbers that are not finite.

    >>> ranks([[0.9, 0.8, 0.8], [0.7, 0.6, 0.5]], higher_is_better=True).average
    array([1.  , 2.25, 2.75])
    """
    numbers = np.asarray(table, dtype=np.float64)
    if numbers.ndim != 2 or numbers.shape[0] < 1 or numbers.shape[1] < 2:
        raise ValueError(f"ranks: needs one or more data sets and two or more methods, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError("ranks: every method needs a finite number on every data set; leave out those without")
    if not 0 < alpha < 1:
        raise ValueError(f"ranks: alpha must be between 0 and 1, got {alpha}; use 0.05")
    cost = np.stack([merged(row, tolerance(row)) for row in (-numbers if higher_is_better else numbers)])
    N, M = cost.shape
    average = np.asarray(stats.rankdata(cost, axis=1).mean(axis=0), dtype=np.float64)
    friedman = _friedman(cost)
    critical = _nemenyi(M, alpha) * math.sqrt(M * (M + 1) / (6 * N)) if N > 1 else math.nan
    alike = math.isnan(critical) or friedman.p >= alpha  # M = 2 has no Friedman test: NaN is not >= alpha
    return Ranks(average, friedman, critical, _cliques(average, math.inf if alike else critical))


def _friedman(cost: Floats) -> Test:
    if cost.shape[0] < 2 or cost.shape[1] < 3:
        return Test(math.nan, math.nan)
    if (cost == cost[:, :1]).all():
        return Test(0.0, 1.0)
    found = stats.friedmanchisquare(*cost.T)
    return Test(float(found.statistic), float(found.pvalue))


def _nemenyi(methods: int, alpha: float) -> float:
    return float(stats.studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)


def _cliques(average: Floats, critical: float) -> tuple[tuple[int, ...], ...]:
    """Return the longest runs, in order of rank, whose ends lie closer than `critical`."""
    order = [int(i) for i in np.argsort(average, kind="stable")]
    found: list[tuple[int, ...]] = []
    reached = 0
    for start, best in enumerate(order):
        # Sums of ranks are multiples of a half, so what is equal may differ in the last bit.
        end = sum(float(average[other] - average[best]) < critical - 1e-9 for other in order)
        if end > max(reached, start + 1):
            found.append(tuple(order[start:end]))
            reached = end
    return tuple(found)
