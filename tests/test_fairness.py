from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.fairness import CONVENTIONS, better, fairness_block, improved_share, tail_size

NAN = math.nan
KEYS = [
    *("n", "mean", "weighted_mean", "std", "variance", "min", "max"),
    *("worst_5", "worst_10", "best_5", "best_10"),
    *("angle_deg", "kl", "entropy", "jain", "gini", "cv"),
]
unhurried = settings(deadline=None)  # a busy machine is not a failure

accuracies = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=60)


def block(values, sizes=None, *, higher_is_better=True):
    return fairness_block(values, [1] * len(values) if sizes is None else sizes, higher_is_better=higher_is_better)


def oracle(values: list[float], sizes: list[float], higher_is_better: bool) -> dict[str, float]:
    """Every definition spelled out in plain Python: pairwise Gini, arccos for the angle."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((a - mean) ** 2 for a in values) / n
    from_worst = sorted(values, reverse=not higher_is_better)
    five, ten = max(1, n * 5 // 100), max(1, n * 10 // 100)
    total, squares = math.fsum(values), math.fsum(a * a for a in values)
    shares = [a / total for a in values]
    return {
        "n": n,
        "mean": mean,
        "weighted_mean": math.fsum(a * s for a, s in zip(values, sizes, strict=True)) / math.fsum(sizes),
        "std": math.sqrt(variance),
        "variance": variance,
        "min": min(values),
        "max": max(values),
        "worst_5": math.fsum(from_worst[:five]) / five,
        "worst_10": math.fsum(from_worst[:ten]) / ten,
        "best_5": math.fsum(from_worst[n - five :]) / five,
        "best_10": math.fsum(from_worst[n - ten :]) / ten,
        "angle_deg": math.degrees(math.acos(min(1.0, total / math.sqrt(n * squares)))),
        "kl": math.fsum(p * math.log(p * n) for p in shares if p > 0),
        "entropy": -math.fsum(p * math.log(p) for p in shares if p > 0),
        "jain": total**2 / (n * squares),
        "gini": math.fsum(abs(a - b) for a in values for b in values) / (2 * n * n * mean),
        "cv": math.sqrt(variance) / mean,
    }


@unhurried
@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.integers(1, 300)), min_size=1, max_size=60).filter(
        lambda rows: max(row[0] for row in rows) > 1e-3
    ),
    st.booleans(),
)
def test_agrees_with_the_definitions_spelled_out(rows, higher_is_better):
    values, sizes = [row[0] for row in rows], [row[1] for row in rows]
    got, want = (
        block(values, sizes, higher_is_better=higher_is_better),
        oracle(values, sizes, higher_is_better),
    )
    assert set(got) == set(want)
    for name, value in want.items():
        # arccos near 1 loses half the digits: hence atan2 in the code, and a loose comparison here.
        tolerance = 1e-5 if name == "angle_deg" else 1e-9
        assert got[name] == pytest.approx(value, rel=1e-9, abs=tolerance), name


def test_keys_are_exactly_these_and_all_are_defined():
    assert list(block([0.5, 1.0])) == KEYS
    assert list(CONVENTIONS) == KEYS
    assert {way for _, way in CONVENTIONS.values()} <= {"higher", "lower", "neither"}
    assert all(type(value) is float for value in block([0.5, 1.0]).values())


def test_a_worked_example():
    got = block([0.2, 0.4, 0.6, 0.8], [10, 10, 10, 70])
    assert got["mean"] == pytest.approx(0.5)
    assert got["weighted_mean"] == pytest.approx(0.68)
    assert got["variance"] == pytest.approx(0.05)  # (0.09 + 0.01 + 0.01 + 0.09) / 4, not / 3
    assert got["jain"] == pytest.approx(4 / (4 * 1.2))
    assert got["gini"] == pytest.approx((-3 * 0.2 - 0.4 + 0.6 + 3 * 0.8) / (4 * 2.0))
    assert (got["worst_10"], got["best_10"]) == (0.2, 0.8)


@unhurried
@given(accuracies)
def test_identities(values):
    got = block(values)
    angle = math.radians(got["angle_deg"])
    assert got["jain"] == pytest.approx(math.cos(angle) ** 2)
    assert got["jain"] == pytest.approx(1 / (1 + got["cv"] ** 2))
    assert math.tan(angle) == pytest.approx(got["cv"])
    assert got["kl"] + got["entropy"] == pytest.approx(math.log(len(values)))
    assert got["variance"] == pytest.approx(got["std"] ** 2)


@unhurried
@given(accuracies)
def test_bounds_and_order(values):
    got, n, slack = block(values), len(values), 1e-12
    assert 1 / n - slack <= got["jain"] <= 1
    assert 0 <= got["gini"] <= 1 - 1 / n + slack
    assert 0 <= got["kl"] <= math.log(n) + slack
    assert 0 <= got["angle_deg"] < 90
    ascending = [got[k] for k in ("min", "worst_5", "worst_10", "mean", "best_10", "best_5", "max")]
    assert all(low <= high + slack for low, high in itertools.pairwise(ascending))


@unhurried
@given(accuracies, st.sampled_from([1e-150, 1e-3, 0.5, 7.0, 1e150]))
def test_scale_changes_std_and_not_the_shape(values, factor):
    got, scaled = block(values), block([a * factor for a in values])
    for name in ("angle_deg", "kl", "entropy", "jain", "gini", "cv"):
        assert scaled[name] == pytest.approx(got[name], rel=1e-6, abs=1e-9), name
    for name in ("mean", "std", "min", "max", "worst_10", "best_5"):
        assert scaled[name] == pytest.approx(factor * got[name], rel=1e-6, abs=1e-15 * factor), name


@unhurried
@given(accuracies.flatmap(lambda values: st.tuples(st.just(values), st.permutations(range(len(values))))))
def test_order_of_clients_does_not_matter(case):
    values, order = case
    sizes = [10 + k for k in range(len(values))]
    shuffled = block([values[k] for k in order], [sizes[k] for k in order])
    assert shuffled == pytest.approx(block(values, sizes))


@unhurried
@given(st.floats(1e-6, 1.0), st.integers(1, 50))
def test_equal_clients_are_perfectly_equal(value, n):
    got = block([value] * n)
    assert (got["std"], got["angle_deg"], got["gini"], got["cv"]) == (0, 0, 0, 0)
    assert got["jain"] == 1
    assert got["mean"] == got["worst_10"] == got["best_5"] == value
    assert got["kl"] == pytest.approx(0, abs=1e-12)
    assert got["entropy"] == pytest.approx(math.log(n))


@pytest.mark.parametrize("n", [1, 3, 100])
def test_all_zeros_are_perfectly_equal(n):
    got = block([0.0] * n)
    assert [got[k] for k in ("mean", "std", "angle_deg", "gini", "cv")] == [0] * 5
    assert got["jain"] == 1
    assert got["kl"] == pytest.approx(0, abs=1e-12)
    assert got["entropy"] == pytest.approx(math.log(n))


def test_one_client_holding_everything():
    got = block([0.0, 0.0, 0.0, 1.0])
    assert got["jain"] == pytest.approx(1 / 4)
    assert got["gini"] == pytest.approx(1 - 1 / 4)
    assert got["kl"] == pytest.approx(math.log(4))  # 0 log 0 = 0
    assert got["entropy"] == 0


# The pitfalls of other people's code.


@pytest.mark.parametrize(
    ("n", "share", "size"),
    [(100, 0.29, 29), (4, 0.1, 1), (9, 0.05, 1), (23, 0.1, 2), (19, 0.1, 1), (1000, 0.05, 50), (1, 0.1, 1)],
)
def test_tail_size(n, share, size):
    assert tail_size(n, share) == size


def test_fewer_than_ten_clients_still_have_a_tail():
    got = block([0.9, 0.5, 0.7])
    assert (got["worst_5"], got["worst_10"], got["best_10"]) == (0.5, 0.5, 0.9)


def test_both_tails_have_the_same_size():
    values = [k / 100 for k in range(1, 20)]  # 19 clients: one in each tail
    got = block(values)
    assert (got["worst_10"], got["best_10"]) == (pytest.approx(0.01), pytest.approx(0.19))


def test_worst_is_the_high_end_of_losses():
    got = block([0.1, 0.2, 3.0], higher_is_better=False)
    assert (got["worst_10"], got["best_10"]) == (pytest.approx(3.0), pytest.approx(0.1))
    assert (got["min"], got["max"]) == (0.1, 3.0)
    assert better("worst_10", higher_is_better=False) == "lower"
    assert better("worst_10", higher_is_better=True) == "higher"
    assert better("jain", higher_is_better=False) == "higher"
    assert better("std", higher_is_better=False) == "lower"


def test_std_divides_by_n():
    values = [0.1, 0.4, 0.7]
    assert block(values)["std"] == pytest.approx(np.std(values))
    assert block(values)["std"] != pytest.approx(np.std(values, ddof=1))


def test_sizes_move_only_the_weighted_mean():
    values = [0.1, 0.4, 0.7]
    plain, weighted = block(values), block(values, [1000, 10, 1])
    changed = {name for name in plain if plain[name] != weighted[name]}
    assert changed == {"weighted_mean"}


def test_clients_without_a_test_value_are_left_out():
    assert block([0.5, NAN, 1.0], [10, 0, 30]) == block([0.5, 1.0], [10, 30])
    assert block([0.5, NAN, 1.0])["n"] == 2
    assert block([0.5, NAN, 1.0])["min"] == 0.5


def test_angle_keeps_its_digits_near_zero():
    delta = 1e-9  # arccos of 1 - 5e-19 would be 0
    assert math.radians(block([1 - delta, 1 + delta])["angle_deg"]) == pytest.approx(delta, rel=1e-6)


def test_halving_everyone_improves_std_only():
    high, low = block([0.6, 0.8, 1.0]), block([0.3, 0.4, 0.5])
    assert low["std"] < high["std"]
    assert low["angle_deg"] == pytest.approx(high["angle_deg"])


def test_huge_losses_do_not_overflow_the_scale_free_measures():
    got = block([1e200, 3e200], higher_is_better=False)
    assert got["cv"] == pytest.approx(0.5)
    assert got["mean"] == pytest.approx(2e200)


def test_an_infinite_loss_shows_and_the_spread_is_undefined():
    got = block([1.0, math.inf, 2.0], higher_is_better=False)
    assert got["mean"] == got["weighted_mean"] == got["max"] == got["worst_10"] == math.inf
    assert (got["min"], got["best_10"]) == (1.0, 1.0)
    assert all(math.isnan(got[name]) for name in ("std", "variance", "angle_deg", "kl", "jain", "gini", "cv"))


@pytest.mark.parametrize(
    ("values", "sizes", "match"),
    [
        ([], [], "no client"),
        ([NAN, NAN], [1, 1], "no client has a value, got 2"),
        ([0.5, -0.1], [1, 1], "must not be negative, got -0.1"),
        ([0.5, 0.1], [1], "one length"),
        ([[0.5]], [[1]], "one length"),
        ([0.5], [-1], "sizes"),
        ([0.5], [NAN], "sizes"),
        ([0.5], [0], "sizes"),
    ],
)
def test_refuses(values, sizes, match):
    with pytest.raises(ValueError, match=match):
        fairness_block(values, sizes, higher_is_better=True)


def test_improved_share_counts_only_falls_and_skips_nan():
    assert improved_share([1, 1, 1, 1], [0.5, 1, 2, 0.9]) == 0.5
    assert improved_share([1, NAN, 1], [0.5, 0.1, NAN]) == 1
    assert math.isnan(improved_share([NAN], [1.0]))
    assert math.isnan(improved_share([], []))
    with pytest.raises(ValueError, match="one length"):
        improved_share([1.0], [1.0, 2.0])
