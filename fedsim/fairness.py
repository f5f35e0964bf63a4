"""How evenly a model serves its clients: one flat, documented record per vector of client values.

Notation: n clients with a value, a_k the value of client k, m their plain mean, s their population standard
deviation, a_(1) <= ... <= a_(n) the sorted values. Everything is a fraction, never a percentage.

Conventions, because public code disagrees on each of them:

* Clients without a test value (NaN) are left out and not counted in n; they never score 0.
* The mean is over clients; the mean over examples is `weighted_mean`. std and variance are about the former
  and divide by n.
* A tail of share p holds floor(p n) clients, at least one. "Worst" is the low end of accuracies and the high
  end of losses.
* A vector of zeros is perfectly equal: angle, KL, Gini and CV are 0, Jain's index is 1, entropy is log n.
* An infinite value (a diverged client's loss) is kept: mean, max and its tail are infinite, and the measures
  of spread, which are then undefined, are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Better = Literal["higher", "lower", "neither"]
Values = NDArray[np.float64]

CONVENTIONS: Mapping[str, tuple[str, Better]] = MappingProxyType(
    {
        "n": ("clients with a test value", "neither"),
        "mean": ("mean over clients, each counting once", "higher"),
        "weighted_mean": ("mean over clients weighted by their test examples", "higher"),
        "std": ("population standard deviation over clients (divides by n)", "lower"),
        "variance": ("square of the standard deviation", "lower"),
        "min": ("smallest value of a client", "higher"),
        "max": ("largest value of a client", "higher"),
        "worst_5": ("mean of the worst 5 % of clients: floor(0.05 n), at least one", "higher"),
        "worst_10": ("mean of the worst 10 % of clients: floor(0.1 n), at least one", "higher"),
        "best_5": ("mean of the best 5 % of clients: floor(0.05 n), at least one", "higher"),
        "best_10": ("mean of the best 10 % of clients: floor(0.1 n), at least one", "higher"),
        "angle_deg": (
            "angle between the client values and the all-equal vector, in degrees: tan = CV",
            "lower",
        ),
        "kl": ("KL divergence of the clients' shares of the total from uniform, in nats", "lower"),
        "entropy": ("entropy of the clients' shares of the total, in nats: log n - KL", "higher"),
        "jain": ("Jain's index, (sum a)^2 / (n sum a^2): 1 is equal, 1/n is one client only", "higher"),
        "gini": ("Gini coefficient: 0 is equal, 1 - 1/n is one client only", "lower"),
        "cv": ("coefficient of variation, std / mean", "lower"),
    }
)
"""Name -> (one-line definition, which way is better for accuracies). For losses see `better`."""

LEVELS = frozenset({"mean", "weighted_mean", "min", "max", "worst_5", "worst_10", "best_5", "best_10"})
"""The measures that have the unit of the values themselves: they turn round for losses."""

_SPREADS = ("std", "variance", "angle_deg", "kl", "entropy", "jain", "gini", "cv")


def better(name: str, *, higher_is_better: bool) -> Better:
    """Return which way a measure is better, for accuracies or for losses.

    >>> better("worst_10", higher_is_better=False), better("jain", higher_is_better=False)
    ('lower', 'higher')
    """
    way = CONVENTIONS[name][1]
    return "lower" if name in LEVELS and not higher_is_better else way


def tail_size(n: int, share: float) -> int:
    """Return how many of n clients make up a tail: floor(share n), at least one.

    0.29 * 100 is 28.999... in binary, hence the guard.

    >>> tail_size(100, 0.29), tail_size(23, 0.1), tail_size(4, 0.1)
    (29, 2, 1)
    """
    return max(1, math.floor(share * n + 1e-9))


def fairness_block(values: ArrayLike, sizes: ArrayLike, *, higher_is_better: bool) -> dict[str, float]:
    """Summarise one value per client; `CONVENTIONS` defines each entry.

    Scale-free measures (angle, KL, entropy, Jain, Gini, CV) do not change when all values are multiplied by a
    constant; std and variance do, so a method that halves everyone's accuracy improves them. Read both beside
    the mean.

    Args:
        values: [K] non-negative values, such as test accuracies (fractions) or losses (nats); NaN where the
            client has none.
        sizes: [K] test examples of each client; only `weighted_mean` uses them.
        higher_is_better: True for accuracies, False for losses; decides which end is "worst".

    Returns:
        The measures of `CONVENTIONS`, in that order.

    Raises:
        ValueError: The shapes differ, a value or size is negative, or no client has a value.
    """
    kept, weights = _with_value(values, sizes)
    ascending = np.sort(kept)
    from_worst = ascending if higher_is_better else ascending[::-1]
    spread = _spread(ascending) if math.isfinite(ascending[-1]) else dict.fromkeys(_SPREADS, math.nan)
    block = {
        "n": float(len(kept)),
        "mean": _mean(ascending),
        "weighted_mean": _mean(kept, weights),
        "min": float(ascending[0]),
        "max": float(ascending[-1]),
        "worst_5": _mean(from_worst[: tail_size(len(kept), 0.05)]),
        "worst_10": _mean(from_worst[: tail_size(len(kept), 0.10)]),
        "best_5": _mean(from_worst[-tail_size(len(kept), 0.05) :]),
        "best_10": _mean(from_worst[-tail_size(len(kept), 0.10) :]),
        **spread,
    }
    return {name: block[name] for name in CONVENTIONS}


def improved_share(before: ArrayLike, after: ArrayLike) -> float:
    """Return the share of clients whose loss fell; clients with NaN on either side are left out.

    Args:
        before: [K] losses before.
        after: [K] losses after, on the same data.

    Returns:
        A fraction; NaN when no client has both values.

    Raises:
        ValueError: The shapes differ.

    >>> improved_share([1.0, 1.0, float("nan"), 1.0], [0.5, 1.0, 0.1, 2.0])
    0.3333333333333333
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"improved_share: needs two vectors of one length, got {first.shape} and {second.shape}")
    both = ~(np.isnan(first) | np.isnan(second))
    return float(np.mean(second[both] < first[both])) if both.any() else math.nan


def _with_value(values: ArrayLike, sizes: ArrayLike) -> tuple[Values, Values]:
    every, counts = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    if every.shape != counts.shape or every.ndim != 1:
        raise ValueError(
            f"fairness: values and sizes must be vectors of one length, got {every.shape}, {counts.shape}"
        )
    there = ~np.isnan(every)
    kept, weights = every[there], counts[there]
    if not len(kept):
        raise ValueError(f"fairness: no client has a value, got {len(every)} clients; evaluate first")
    if (kept < 0).any():
        raise ValueError(f"fairness: values must not be negative, got {kept.min():g}")
    if not (np.isfinite(weights) & (weights >= 0)).all() or weights.sum() == 0:
        raise ValueError("fairness: sizes must be counts of test examples, at least one of them positive")
    return kept, weights


def _mean(values: Values, weights: Values | None = None) -> float:
    top = float(values.max())
    if top == 0 or math.isinf(top):
        return top
    # Divided by the largest first: equal values have exactly their value as mean, and no sum overflows.
    return top * float(np.average(values / top, weights=weights))


def _spread(ascending: Values) -> dict[str, float]:
    n, top = len(ascending), float(ascending[-1])
    # All but std and variance are free of scale, and the squares of values / max cannot overflow.
    scaled = ascending / top if top > 0 else np.ones(n)
    mean, std, total = float(scaled.mean()), float(scaled.std()), float(scaled.sum())
    shares = scaled / total
    held = shares[shares > 0]  # 0 log 0 = 0
    return {
        "std": top * std,
        "variance": (top * std) * (top * std),
        "angle_deg": math.degrees(math.atan2(std, mean)),
        "kl": max(0.0, float(np.sum(held * np.log(n * held)))),
        "entropy": max(0.0, -float(np.sum(held * np.log(held)))),
        "jain": min(1.0, mean * mean / float(np.mean(scaled * scaled))),
        "gini": max(0.0, float(np.dot(2 * np.arange(1, n + 1) - n - 1, scaled)) / (n * total)),
        "cv": std / mean,
    }
