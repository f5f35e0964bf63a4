"""Sharing out work: every piece once, and no worker with much more than its part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedsim.engine.schedule import balance

COSTS = st.lists(st.floats(0, 1e6), max_size=40)
WORKERS = st.integers(1, 9)


@given(COSTS, WORKERS)
def test_every_piece_is_done_once_and_in_order(costs: list[float], num_workers: int) -> None:
    shares = balance(costs, num_workers)
    assert len(shares) == num_workers
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    assert balance(costs, num_workers) == shares


@given(COSTS.filter(bool), WORKERS)
def test_the_largest_load_is_within_grahams_bounds(costs: list[float], num_workers: int) -> None:
    """A list schedule is at most mean + (1 - 1/m) max; the mean and the max bound any schedule from below."""
    largest = max(sum(costs[place] for place in share) for share in balance(costs, num_workers))
    mean = sum(costs) / num_workers
    assert largest <= (mean + (1 - 1 / num_workers) * max(costs)) * (1 + 1e-9) + 1e-9
    assert largest >= max(mean, max(costs)) * (1 - 1e-9) - 1e-9


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_the_largest_load_is_at_most_four_thirds_of_the_best(costs: list[int], num_workers: int) -> None:
    """Graham (1969): longest first is within 4/3 - 1/(3m) of the optimum, found here by trying everything."""

    def best(left: list[int], loads: tuple[int, ...]) -> int:
        if not left:
            return max(loads)
        return min(
            best(left[1:], tuple(sorted((*loads[:i], loads[i] + left[0], *loads[i + 1 :]))))
            for i in range(len(loads))
        )

    largest = max(sum(costs[place] for place in share) for share in balance(costs, num_workers))
    assert largest <= (4 / 3 - 1 / (3 * num_workers)) * best(costs, (0,) * num_workers) + 1e-9


def test_more_workers_than_pieces_leaves_some_idle() -> None:
    assert sorted(balance([1.0, 1.0], 4)) == [[], [], [0], [1]]
    assert balance([], 2) == [[], []]


def test_many_equal_pieces_are_spread_evenly() -> None:
    assert [len(share) for share in balance([1.0] * 10, 3)] == [4, 3, 3]
