"""Paired tests against enumeration, effect sizes against their definitions, and samples without a spread."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.statistics import paired, smallest_wilcoxon_p
from fedsim.statistics.pairs import t_tests, wilcoxon_p

LISTS = st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=10)


def ranks_of(sizes: list[int]) -> list[Fraction]:
    return [Fraction(sum(o < x for o in sizes)) + Fraction(sum(o == x for o in sizes) + 1, 2) for x in sizes]


def enumerated(change: list[int]) -> tuple[Fraction, Fraction]:
    """Wilcoxon's smaller sum of ranks and its two-sided p, by trying every sign."""
    moved = [x for x in change if x]
    rank = ranks_of([abs(x) for x in moved])
    up = sum((r for r, x in zip(rank, moved, strict=True) if x > 0), Fraction())
    total = sum(rank, Fraction())
    extreme = min(up, total - up)
    sums = [
        sum(itertools.compress(rank, signs), Fraction()) for signs in itertools.product([0, 1], repeat=len(rank))
    ]
    hits = sum(s <= extreme for s in sums)
    return extreme, min(Fraction(1), Fraction(2 * hits, len(sums)))


@settings(deadline=None, max_examples=60)
@given(LISTS)
def test_wilcoxon_is_what_trying_every_sign_gives(pairs: list[tuple[int, int]]) -> None:
    found = paired([a for a, _ in pairs], [b for _, b in pairs])
    statistic, p = enumerated([a - b for a, b in pairs])
    assert found.wilcoxon.statistic == float(statistic)
    assert found.wilcoxon.p == pytest.approx(float(p), rel=1e-9)


@pytest.mark.parametrize("n", [11, 14])
@pytest.mark.parametrize("tied", [False, True])
def test_wilcoxon_of_more_pairs_too(n: int, tied: bool) -> None:
    draw = random.Random(n)
    change = [draw.randint(-3, 5) for _ in range(n)] if tied else [(-1) ** (i % 4 == 0) * (i + 1) for i in range(n)]
    assert wilcoxon_p(np.array(change, dtype=float)) == pytest.approx(float(enumerated(change)[1]), rel=1e-9)


@pytest.mark.parametrize("n", [30, 60])
def test_wilcoxon_of_many_is_near_the_truth(n: int) -> None:
    draw = np.random.default_rng(n)
    change = np.round(draw.normal(0.6, 2, size=n))
    moved = np.abs(change[change != 0])
    rank = stats.rankdata(moved)
    signs = draw.integers(0, 2, size=(20_000, len(rank))).astype(float)
    sums, up = signs @ rank, rank[change[change != 0] > 0].sum()
    expected = np.mean(np.abs(sums - rank.sum() / 2) >= abs(up - rank.sum() / 2) - 1e-9)
    assert wilcoxon_p(change) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_smallest_p_is_that_of_all_signs_alike(n: int) -> None:
    assert smallest_wilcoxon_p(n) == pytest.approx(wilcoxon_p(np.arange(1.0, n + 1)))


def test_the_smallest_p_of_no_pairs() -> None:
    assert smallest_wilcoxon_p(0) == 1.0
    with pytest.raises(ValueError, match="got -1"):
        smallest_wilcoxon_p(-1)


@settings(deadline=None, max_examples=60)
@given(LISTS)
def test_effects_and_t_are_their_definitions(pairs: list[tuple[int, int]]) -> None:
    change = [a - b for a, b in pairs]
    n, found = len(change), paired([a for a, _ in pairs], [b for _, b in pairs])
    rank = ranks_of([abs(x) for x in change if x])
    signed = sum(r if x > 0 else -r for r, x in zip(rank, [x for x in change if x], strict=True))
    assert found.rank_biserial == pytest.approx(float(signed / sum(rank)) if rank else 0.0)
    if len(set(change)) > 1:
        mean = sum(change) / n
        std = math.sqrt(sum((x - mean) ** 2 for x in change) / (n - 1))
        assert (found.mean, found.std) == pytest.approx((mean, std))
        assert found.t.statistic == pytest.approx(mean / (std / math.sqrt(n)), abs=1e-12)
        assert found.t.p == pytest.approx(2 * stats.t.sf(abs(mean) / (std / math.sqrt(n)), n - 1))
        if n > 2:
            m = n - 1
            hedges = math.gamma(m / 2) / (math.sqrt(m / 2) * math.gamma((m - 1) / 2))
            assert found.effect_size == pytest.approx(hedges * mean / std)
        else:
            assert math.isnan(found.effect_size)


def test_hedges_correction_takes_out_the_bias() -> None:
    # 5 pairs with a true effect of 1: mean / std alone overshoots by a quarter.
    draw = np.random.default_rng(3).normal(1.0, 1.0, size=(2000, 5))
    raw = draw.mean(axis=1) / draw.std(axis=1, ddof=1)
    # math.gamma(2) / (sqrt(2) gamma(1.5)) = 0.7979
    found = [paired(row, np.zeros(5)).effect_size for row in draw[:50]]
    assert found == pytest.approx(0.7979 * raw[:50], rel=1e-4)
    assert np.mean(0.7979 * raw) == pytest.approx(1.0, abs=4 * np.std(0.7979 * raw) / math.sqrt(2000))


@settings(deadline=None, max_examples=40)
@given(LISTS, st.randoms(use_true_random=False), st.integers(-64, 64), st.sampled_from([0.25, 2.0, 1024.0]))
def test_what_a_comparison_does_not_depend_on(
    pairs: list[tuple[int, int]], shuffler: random.Random, shift: int, scale: float
) -> None:
    ours, theirs = np.array(pairs, dtype=float).T / 128
    said = paired(ours, theirs)
    order = list(range(len(pairs)))
    shuffler.shuffle(order)
    # repr, because NaN is not equal to itself
    assert repr(paired(ours[order], theirs[order])) == repr(said)
    assert repr(paired(ours + shift, theirs + shift)) == repr(said)

    swapped, scaled = paired(theirs, ours), paired(scale * ours, scale * theirs)
    assert swapped.wilcoxon == said.wilcoxon == scaled.wilcoxon
    assert swapped.t.p == pytest.approx(said.t.p)
    assert scaled.t.p == pytest.approx(said.t.p)
    for name in ("mean", "effect_size", "rank_biserial"):
        assert getattr(swapped, name) == pytest.approx(-getattr(said, name), nan_ok=True)
    assert scaled.effect_size == pytest.approx(said.effect_size, nan_ok=True)
    assert swapped.interval == pytest.approx((-said.interval[1], -said.interval[0]), abs=1e-9)
    assert scaled.interval == pytest.approx([scale * x for x in said.interval], abs=1e-9 * scale)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_equal_methods_differ_in_nothing(n: int) -> None:
    values = np.random.default_rng(n).uniform(size=n)
    said = paired(values, values)
    assert said == (n, 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 0.0, 0.0, (0.0, 1.0), (0.0, 1.0))


@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("base", [1e-3, 0.9, 4e9])
def test_rounding_is_no_difference(n: int, base: float) -> None:
    values = base * np.random.default_rng(n).uniform(0.5, 1, size=n)
    above = values * (1 + 3e-16 * np.arange(1, n + 1))
    assert (above > values).all()  # to the same side in every pair: 2 / 2^n to a rank test that believes it
    said = paired(above, values)
    assert (said.mean, said.t.p, said.wilcoxon.p, said.effect_size) == (0.0, 1.0, 1.0, 0.0)


def test_a_spread_of_nothing_is_no_difference() -> None:
    # The standard deviation of equal values is 0 or 1e-17, depending on the order of a sum.
    said = paired([3e-17, 1e-17, 5e-17, 2e-17, 1e-17, 1e-17], [0.0] * 6)
    assert (said.t.p, said.wilcoxon.p) == (1.0, 1.0)


def test_rounding_breaks_no_tie() -> None:
    baseline = np.array([0.1, 0.2, 0.3, 0.7, 0.8])
    ours = np.array([0.2, 0.3, 0.2, 0.8, 0.9])  # 0.1 up four times and down once, give or take a last bit
    assert len({abs(a - b) for a, b in zip(ours, baseline, strict=True)}) > 1
    said = paired(ours, baseline)
    assert said.wilcoxon.statistic == 3.0
    assert said.rank_biserial == pytest.approx(0.6)


@pytest.mark.parametrize("n", [2, 5, 10])
@pytest.mark.parametrize("gap", [0.01, -0.2])
def test_one_and_the_same_difference_everywhere(n: int, gap: float) -> None:
    baseline = np.random.default_rng(n).uniform(size=n)
    said = paired(baseline + gap, baseline)
    assert said.mean == pytest.approx(gap)
    assert said.std == 0
    assert said.interval == said.t_interval == (said.mean, said.mean)
    assert said.effect_size == said.t.statistic == math.copysign(math.inf, gap)
    assert said.rank_biserial == math.copysign(1, gap)
    assert said.t.p == said.wilcoxon.p == pytest.approx(2 / 2**n)


def test_columns_are_what_each_says_alone() -> None:
    change = np.array([[0.0, 1.0, 1.0, -2.0], [0.0, 1.0, 2.0, -2.0], [0.0, 1.0, 4.0, 1.0]])
    statistic, p = t_tests(change)
    for column in range(4):
        said = paired(change[:, column], np.zeros(3)).t
        assert (statistic[column], p[column]) == pytest.approx((said.statistic, said.p))


def test_fewer_than_two_pairs_say_nothing() -> None:
    one, none = paired([0.5], [0.3]), paired([], [])
    assert (one.n, none.n) == (1, 0)
    assert one.mean == pytest.approx(0.2)
    for said in (one, none):
        unknown = (said.std, *said.interval, *said.t_interval, said.effect_size, said.rank_biserial, *said.t)
        assert all(math.isnan(x) for x in (*unknown, *said.wilcoxon))


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="got nan at 0; leave such pairs out"):
        paired([0.1, 0.2], [math.nan, 0.1])
