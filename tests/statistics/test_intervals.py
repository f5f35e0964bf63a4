"""Intervals against a resampling written out, their coverage, and what they must not depend on."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.statistics import describe
from fedsim.statistics.intervals import beta_bootstrap_t

SAMPLE = [0.71, 0.64, 0.9, 0.77, 0.68]


def written_out(values: list[float], level: float, resamples: int = 30_000) -> tuple[float, float]:
    """The beta bootstrap t, weight by weight, with another generator."""
    draw = random.Random(1)
    n = len(values)
    mean = sum(values) / n
    std = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    pivots = []
    for _ in range(resamples):
        weights = [draw.betavariate(0.5, 1.5) for _ in values]
        total = sum(weights)
        centre = sum(w * x for w, x in zip(weights, values, strict=True)) / total
        spread = math.sqrt(sum(w * (x - centre) ** 2 for w, x in zip(weights, values, strict=True)) / total)
        pivots.append((centre - mean) / spread)
    pivots.sort()
    low, high = pivots[int(resamples * (1 - level) / 2)], pivots[int(resamples * (1 + level) / 2)]
    return mean - high * std, mean - low * std


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_bootstrap_is_the_one_written_out(level: float) -> None:
    found, expected = describe(SAMPLE, level=level).interval, written_out(SAMPLE, level)
    width = expected[1] - expected[0]
    assert found == pytest.approx(expected, abs=0.04 * width)


def test_students_interval_of_a_textbook() -> None:
    # t(0.975, 4) = 2.776
    mean, std = sum(SAMPLE) / 5, math.sqrt(sum((x - sum(SAMPLE) / 5) ** 2 for x in SAMPLE) / 4)
    said = describe(SAMPLE)
    assert (said.n, said.mean, said.std) == pytest.approx((5, mean, std))
    assert said.t_interval == pytest.approx((mean - 2.776 * std / 5**0.5, mean + 2.776 * std / 5**0.5), abs=1e-4)


@pytest.mark.parametrize(("family", "n", "least"), [("normal", 5, 0.935), ("exponential", 10, 0.92)])
def test_an_interval_contains_the_mean_about_as_often_as_it_says(family: str, n: int, least: float) -> None:
    draw = np.random.default_rng(7)
    sample, mean = {
        "normal": (draw.normal(size=(1000, n)), 0.0),
        "exponential": (draw.exponential(size=(1000, n)), 1.0),
    }[family]
    bounds = [beta_bootstrap_t(np.sort(row), 0.95, 0) for row in sample]
    covered = np.mean([low <= mean <= high for low, high in bounds])
    assert least <= covered <= 0.98
    usual = np.mean([b - a for a, b in (describe(row).t_interval for row in sample[:100])])
    assert np.mean([b - a for a, b in bounds[:100]]) < 1.5 * usual


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-4096, 4096), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_a_mirror_mirrors(numbers: list[int], shuffler: random.Random) -> None:
    values = [x / 4096 for x in numbers]
    said = describe(values)
    shuffled = list(values)
    shuffler.shuffle(shuffled)
    assert describe(shuffled) == said
    mirrored = describe([-x for x in values])
    assert mirrored.interval == pytest.approx((-said.interval[1], -said.interval[0]), rel=1e-9, abs=1e-12)
    moved = describe([2 * x + 3 for x in values])
    assert moved.interval == pytest.approx([2 * x + 3 for x in said.interval], rel=1e-9)
    assert moved.t_interval == pytest.approx([2 * x + 3 for x in said.t_interval], rel=1e-9)
    assert all(math.isfinite(x) for x in said.interval)


def test_a_seed_is_a_result() -> None:
    assert describe(SAMPLE, seed=1) == describe(SAMPLE, seed=1)
    first, other = describe(SAMPLE, seed=1).interval, describe(SAMPLE, seed=2).interval
    assert first != other
    assert first == pytest.approx(other, abs=0.03)
    assert describe(SAMPLE, seed=1).t_interval == describe(SAMPLE, seed=2).t_interval


def test_four_equal_values_of_five_leave_it_finite() -> None:
    # A third of the ordinary resamples have no spread here, and the ordinary bootstrap t no end.
    low, high = describe([0.9, 0.9, 0.9, 0.9, 0.92]).interval
    assert 0.85 < low < 0.9 < 0.904 < high < 0.99


def test_few_and_equal_values() -> None:
    nothing, one, equal = describe([]), describe([0.4]), describe([0.1 + 0.2, 0.3, 0.3])
    assert nothing.n == 0
    assert math.isnan(nothing.mean)
    assert (one.n, one.mean) == (1, 0.4)
    assert all(math.isnan(x) for x in (one.std, *one.interval, *one.t_interval, *nothing.interval))
    assert equal == (3, 0.3, 0.0, (0.3, 0.3), (0.3, 0.3))
    assert all(math.isfinite(x) for x in describe([0.1, 0.2]).interval)


def test_a_diverged_run_is_not_averaged_away() -> None:
    said = describe([0.4, math.inf, 0.5])
    assert (said.n, said.mean) == (3, math.inf)
    assert all(math.isnan(x) for x in (said.std, *said.interval, *said.t_interval))
    assert describe([-math.inf]).mean == -math.inf
    assert math.isnan(describe([math.inf, -math.inf]).mean)


def test_what_is_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="must be numbers, got nan at 1"):
        describe([0.1, math.nan])
    with pytest.raises(ValueError, match="must be a vector"):
        describe([[0.1, 0.2]])
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        describe([0.1, 0.2], level=95)
