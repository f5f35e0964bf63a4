"""Who does what: longest first, onto the worker with least to do. It changes times, never results."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def balance(costs: Sequence[float], num_workers: int) -> list[list[int]]:
    """Share out pieces of work so that the largest sum is small (longest processing time first).

    Args:
        costs: Cost of each piece.
        num_workers: Number of workers.

    Returns:
        For each worker the places of its pieces, ascending; every piece is in exactly one list.

    >>> balance([1.0, 5.0, 4.0], 2)
    [[1], [0, 2]]
    """
    loads = [(0.0, worker) for worker in range(num_workers)]
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    for place in sorted(range(len(costs)), key=lambda place: (-costs[place], place)):
        load, worker = heapq.heappop(loads)
        shares[worker].append(place)
        heapq.heappush(loads, (load + costs[place], worker))
    return [sorted(share) for share in shares]
