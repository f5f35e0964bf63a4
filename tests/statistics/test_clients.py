"""Shares of clients and Pareto fronts, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.statistics import pareto, wins

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_shares_are_counts(clients: list[tuple[int, int]]) -> None:
    ours, theirs = ([x / 10 for x in each] for each in zip(*clients, strict=True))
    found = wins(ours, theirs)
    assert found.better == pytest.approx(sum(a > b for a, b in clients) / len(clients))
    assert found.worse == pytest.approx(sum(a < b for a, b in clients) / len(clients))
    assert sum(found) == pytest.approx(1)
    assert wins(theirs, ours) == (found.worse, found.equal, found.better)
    assert wins([*ours, math.nan, 1.0], [*theirs, 1.0, math.nan]) == found


def test_rounding_is_no_win() -> None:
    assert wins([0.1 + 0.2, 0.5], [0.3, 0.4]) == (0.5, 0.5, 0.0)


def test_nobody_to_count() -> None:
    assert all(math.isnan(share) for share in wins([math.nan, 0.1], [0.2, math.nan]))
    assert all(math.isnan(share) for share in wins([], []))
    with pytest.raises(ValueError, match="one value for each client"):
        wins([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="got infinity"):
        wins([math.inf], [0.1])


@given(POINTS)
def test_the_front_is_who_nobody_beats(points: list[tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] >= b[0] and a[1] >= b[1] and a != b

    expected = [not any(beats(other, point) for other in points) for point in points]
    assert pareto(np.array(points, dtype=float).reshape(-1, 2) / 10).tolist() == expected


def test_rounding_beats_nobody() -> None:
    assert pareto([[0.1 + 0.2, 0.5], [0.3, 0.5], [0.2, 0.5]]).tolist() == [True, True, False]


def test_what_is_no_point_is_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        pareto([0.1, 0.2])
    with pytest.raises(ValueError, match="must be finite"):
        pareto([[0.1, math.nan]])
