"""Holm's correction for many comparisons. SciPy has false discovery rates only, a weaker promise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fedsim.statistics.rounding import Floats


def holm(p: ArrayLike) -> Floats:
    """Return p values corrected by Holm's step-down procedure (Scand. J. Stat. 6, 1979).

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_(j)). Claiming what is below alpha makes
    one false claim or more with probability at most alpha, however the tests depend on each other.

    Args:
        p: [..., m] p values, a family in each row. NaN is no member of its family and stays NaN.

    Raises:
        ValueError: If a value is outside 0 to 1.

    >>> holm([0.01, 0.04, 0.03, float("nan")])
    array([0.03, 0.06, 0.06,  nan])
    """
    given = np.asarray(p, dtype=np.float64)
    if ((given < 0) | (given > 1)).any():
        raise ValueError(f"holm: p values lie between 0 and 1, got {np.nanmin(given):g} to {np.nanmax(given):g}")
    order = np.argsort(given, axis=-1, kind="stable")  # NaN last
    ascending = np.take_along_axis(given, order, axis=-1)
    members = (~np.isnan(given)).sum(axis=-1, keepdims=True)
    # NaN stand behind the members, so they raise no maximum; their own factor may be anything.
    factor = members - np.arange(given.shape[-1])
    stepped = np.minimum(1.0, np.maximum.accumulate(factor * ascending, axis=-1))
    result = np.empty_like(given)
    np.put_along_axis(result, order, stepped, axis=-1)
    return result
