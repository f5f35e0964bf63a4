"""Holm's correction against its definition, and against Bonferroni's."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.statistics import holm

FAMILY = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rejected(p: list[float], alpha: float) -> set[int]:
    """Holm's procedure as he wrote it: from the smallest p on, until one is too large."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found: set[int] = set()
    for step, i in enumerate(order):
        if p[i] * (len(p) - step) > alpha:
            break
        found.add(i)
    return found


@given(FAMILY, st.floats(0.001, 0.5))
def test_what_is_below_alpha_is_what_the_procedure_rejects(p: list[float], alpha: float) -> None:
    assert {i for i, corrected in enumerate(holm(p)) if corrected <= alpha} == rejected(p, alpha)


@given(FAMILY, st.randoms(use_true_random=False))
def test_it_lies_between_nothing_and_bonferroni(p: list[float], shuffler: random.Random) -> None:
    corrected = holm(p)
    assert (corrected >= p).all()
    assert (corrected <= np.minimum(1.0, len(p) * np.array(p))).all()
    order = list(range(len(p)))
    shuffler.shuffle(order)
    assert holm([p[i] for i in order]) == pytest.approx(corrected[order])


@given(FAMILY, st.lists(st.integers(0, 12), max_size=4))
def test_unknown_ones_are_no_members(p: list[float], places: list[int]) -> None:
    holes = list(p)
    for place in places:
        holes.insert(min(place, len(holes)), math.nan)
    corrected = holm(holes)
    there = ~np.isnan(holes)
    assert np.isnan(corrected[~there]).all()
    assert corrected[there].tolist() == holm(p).tolist()


def test_rows_are_families() -> None:
    table = np.random.default_rng(0).uniform(size=(6, 4))
    table[0, 1] = table[3, 0] = math.nan
    assert np.array_equal(holm(table), np.stack([holm(row) for row in table]), equal_nan=True)


def test_one_test_alone_and_none() -> None:
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []
    assert np.isnan(holm([math.nan, math.nan])).all()


@pytest.mark.parametrize("p", [[-0.1], [0.5, 1.1]])
def test_what_is_no_probability_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm(p)
