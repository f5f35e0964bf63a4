"""Numbers that differ by rounding alone are equal: no test may find a difference in the last bit.

Two methods that do the same sums in another order differ by 1e-16 in every pair, always to the same side. To a
rank test that is as good as a real gain, and to a t test better than most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RELATIVE = 1e-12
"""Of the largest number that takes part. Sums of some thousand float64 err by less."""

ABSOLUTE = 1e-14
"""What a spread of equal fractions may be instead of 0; no share, loss or time is that small."""


def tolerance(*values: Floats) -> float:
    """Return the distance up to which numbers computed from these are equal; they must not be empty."""
    return max(ABSOLUTE, RELATIVE * max(float(np.abs(each).max()) for each in values))


def merged(values: Floats, within: float) -> Floats:
    """Return the values [n], each run of neighbours within a distance replaced by the smallest of the run."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    group = np.cumsum(np.diff(ascending, prepend=ascending[:1]) > within)
    _, first = np.unique(group, return_index=True)
    result = np.empty_like(values)
    result[order] = ascending[first][group]
    return result


def differences(values: Floats, baseline: Floats) -> Floats:
    """Return values - baseline [n]: rounding is 0, and equal sizes are equal to the bit, so that ties are ties.

    >>> differences(np.array([0.3, 0.5]), np.array([0.1 + 0.2, 0.25]))
    array([0.  , 0.25])
    """
    raw = values - baseline
    if not len(raw):
        return raw
    sizes = np.concatenate([[0.0], np.abs(raw)])  # what is within reach of 0 becomes 0
    return np.sign(raw) * merged(sizes, tolerance(values, baseline))[1:] + 0.0  # no -0.0


def vector(values: ArrayLike, where: str, *, finite: bool = True) -> Floats:
    """Return a vector of float64.

    Raises:
        ValueError: If it is not a vector, or holds NaN, or infinity where it has to be finite.
    """
    result = np.asarray(values, dtype=np.float64)
    if result.ndim != 1:
        raise ValueError(f"{where}: values must be a vector, got shape {result.shape}")
    wrong = np.flatnonzero(~np.isfinite(result) if finite else np.isnan(result))
    if len(wrong):
        raise ValueError(
            f"{where}: values must be numbers, got {result[wrong[0]]:g} at {wrong[0]}; leave such pairs out"
        )
    return result
