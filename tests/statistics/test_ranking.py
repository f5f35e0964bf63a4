"""Ranks over data sets against Demsar's tables and example, and cliques against every subset."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fedsim.statistics import ranks

Q05 = dict(zip(range(2, 11), (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164), strict=True))
Q10 = dict(zip(range(2, 11), (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920), strict=True))

DEMSAR = np.array(
    [
        [4, 3, 2, 1],
        [1, 2, 3, 4],
        [4, 1, 2, 3],
        [4, 1, 3, 2],
        [4, 2, 3, 1],
        [1, 2.5, 4, 2.5],
        [3, 2, 4, 1],
        [2.5, 2.5, 4, 1],
        [4, 3, 2, 1],
        [2.5, 2.5, 2.5, 2.5],
        [4, 2.5, 1, 2.5],
        [3, 2, 4, 1],
        [4, 1, 2, 3],
        [3, 1, 4, 2],
    ]
)
"""Demsar (2006), table 6: ranks of C4.5, C4.5+m, C4.5+cf and C4.5+m+cf on 14 data sets."""


@pytest.mark.parametrize(("alpha", "table"), [(0.05, Q05), (0.1, Q10)])
def test_critical_values_are_demsars(alpha: float, table: dict[int, float]) -> None:
    for methods, q in table.items():
        random = np.random.default_rng(methods).uniform(size=(7, methods))
        found = ranks(random, higher_is_better=True, alpha=alpha).critical_difference
        assert found / math.sqrt(methods * (methods + 1) / (6 * 7)) == pytest.approx(q, abs=0.0015)


def test_demsars_example() -> None:
    found = ranks(DEMSAR, higher_is_better=False, alpha=0.1)
    assert found.average == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    # He has chi squared without the correction for ties, 9.28; with it, it is a little larger.
    assert 9.28 <= found.friedman.statistic < 10.5
    assert found.friedman.p == pytest.approx(stats.chi2.sf(found.friedman.statistic, 3))
    assert found.critical_difference == pytest.approx(1.12, abs=0.005)
    # "The performance of pure C4.5 is significantly worse than that of C4.5+m and C4.5+m+cf"; C4.5+cf is undecided.
    assert found.cliques == ((3, 1, 2), (2, 0))


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(float, st.tuples(st.integers(2, 6), st.integers(2, 5)), elements=st.integers(0, 4)))
def test_ranks_and_cliques_are_their_definitions(table: np.ndarray) -> None:
    found = ranks(table, higher_is_better=False)
    N, M = table.shape
    average = [
        sum(1 + (row < row[m]).sum() + ((row == row[m]).sum() - 1) / 2 for row in table) / N for m in range(M)
    ]
    assert found.average == pytest.approx(average)
    assert ranks(-table, higher_is_better=True).average == pytest.approx(average)
    assert ranks(table, higher_is_better=True).average == pytest.approx([M + 1 - a for a in average])

    reach = math.inf if found.friedman.p >= 0.05 else found.critical_difference - 1e-9
    alike = [
        set(some)
        for size in range(2, M + 1)
        for some in itertools.combinations(range(M), size)
        if max(average[i] for i in some) - min(average[i] for i in some) < reach
    ]
    largest = [some for some in alike if not any(some < other for other in alike)]
    assert sorted(map(sorted, found.cliques)) == sorted(map(sorted, largest))
    for clique in found.cliques:
        assert list(clique) == sorted(clique, key=lambda m: average[m])


def test_friedman_without_ties_is_the_formula() -> None:
    table = np.array([[3, 1, 2, 4], [4, 1, 3, 2], [3, 2, 1, 4], [4, 2, 1, 3], [4, 1, 2, 3.0]])
    N, M = table.shape
    average = table.mean(axis=0)
    chi2 = 12 * N / (M * (M + 1)) * (sum(a * a for a in average) - M * (M + 1) ** 2 / 4)
    found = ranks(table, higher_is_better=False)
    assert found.average == pytest.approx(average)
    assert found.friedman == pytest.approx((chi2, stats.chi2.sf(chi2, M - 1)))


def test_rounding_shares_a_rank() -> None:
    found = ranks([[0.1 + 0.2, 0.3, 0.2], [0.3, 0.1 + 0.2, 0.2]], higher_is_better=True)
    assert found.average.tolist() == [1.5, 1.5, 3.0]


def test_equal_methods_are_one_clique() -> None:
    found = ranks(np.full((6, 3), 0.5), higher_is_better=True)
    assert found.average.tolist() == [2, 2, 2]
    assert found.friedman == (0.0, 1.0)
    assert found.cliques == ((0, 1, 2),)


def test_clear_orders_are_told_apart() -> None:
    table = np.tile([0.9, 0.8, 0.7], (20, 1))
    assert ranks(table, higher_is_better=True).cliques == ()
    assert ranks(table[:, :2], higher_is_better=True).cliques == ()  # 1 apart, of 1.96 / sqrt(20) = 0.44
    assert ranks(table[:3, :2], higher_is_better=True).cliques == ((0, 1),)


def test_one_data_set_tells_nothing_apart() -> None:
    found = ranks([[0.9, 0.5, 0.1]], higher_is_better=True)
    assert found.average.tolist() == [1, 2, 3]
    assert math.isnan(found.critical_difference)
    assert math.isnan(found.friedman.p)
    assert found.cliques == ((0, 1, 2),)


@pytest.mark.parametrize(
    ("table", "alpha", "message"),
    [
        ([[0.1], [0.2]], 0.05, "two or more methods"),
        ([0.1, 0.2], 0.05, "two or more methods"),
        ([[0.1, math.nan]], 0.05, "finite number on every data set"),
        ([[0.1, 0.2]], 5, "alpha must be between 0 and 1, got 5"),
    ],
)
def test_what_is_no_table_is_refused(table: list[list[float]], alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(table, higher_is_better=True, alpha=alpha)
