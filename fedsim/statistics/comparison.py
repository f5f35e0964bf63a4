"""Every method of a scenario against its baseline, tests corrected together: the `difference` of study.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from fedsim.fairness import Better
from fedsim.statistics.correction import holm
from fedsim.statistics.intervals import Interval
from fedsim.statistics.pairs import Paired, Test, paired
from fedsim.statistics.rounding import Floats, differences

Unknown = list[float | None]


class Corrected(TypedDict):
    """A test and its p after Holm's correction; null for a metric that is not tested."""

    statistic: float | None
    p: float | None
    p_holm: float | None


class Difference(TypedDict):
    """A method against the baseline in one metric, ready for JSON: what is unknown or infinite is null.

    Keys as in `Paired`, and:
        significant: Whether a difference may be claimed: p_holm of the t test below alpha, with enough pairs.
        improves: Whether the mean difference is to the better side, significant or not; null without a side.
        partitions_agree: [partitions whose mean difference has the sign of the mean over all pairs, partitions];
            null without partitions or without a sign.
    """

    n: int
    mean: float | None
    std: float | None
    interval: Unknown
    t_interval: Unknown
    effect_size: float | None
    rank_biserial: float | None
    t: Corrected
    wilcoxon: Corrected
    significant: bool
    improves: bool | None
    partitions_agree: list[int] | None


def compare(
    values: Mapping[str, Mapping[str, ArrayLike]],
    baseline: str,
    metrics: Sequence[str],
    better: Mapping[str, Better],
    alpha: float = 0.05,
    min_pairs: int = 5,
    level: float = 0.95,
    seed: int = 0,
    *,
    partitions: Sequence[int | None] | None = None,
) -> dict[str, dict[str, Difference | None]]:
    """Compare every method with the baseline in every metric.

    A family for Holm's correction is all methods x tested metrics of this call. A pair without a value (NaN) of the
    method or the baseline is left out of that comparison alone. An infinite value has no difference: such a
    comparison counts its pairs and says nothing else.

    Args:
        values: Label -> metric -> [n] over pairs, in one order for all; NaN where a run is missing.
        baseline: The label to compare with.
        metrics: The tested metrics; others in `values` are described and not tested.
        better: Metric -> which way is better.
        alpha: Probability of any false claim within the family.
        min_pairs: Fewest pairs of which a difference may be claimed.
        level: Of the intervals.
        seed: Of the resampling.
        partitions: [n] the partition of each pair, where seeds and partitions are crossed.

    Returns:
        Label -> metric -> difference from the baseline; None for the baseline itself.

    Raises:
        ValueError: If the baseline or a tested metric is not there, or the values do not fit together.
    """
    _check(values, baseline, metrics, better, alpha, partitions)
    found: dict[tuple[str, str], Difference] = {}
    for label, of in values.items():
        for metric in of:
            if label != baseline:
                pair = (of[metric], values[baseline][metric])
                found[label, metric] = _difference(*pair, better[metric], level, seed, partitions)
    family = [key for key in found if key[1] in metrics]
    for kind in ("t", "wilcoxon"):
        p = holm([_number(found[key][kind]["p"]) for key in family])
        for key, corrected in zip(family, p, strict=True):
            found[key][kind]["p_holm"] = _known(corrected)
    for key in family:
        p_holm = found[key]["t"]["p_holm"]
        found[key]["significant"] = p_holm is not None and p_holm < alpha and found[key]["n"] >= min_pairs
    return {label: {metric: found.get((label, metric)) for metric in of} for label, of in values.items()}


def _difference(
    values: ArrayLike,
    baseline: ArrayLike,
    way: Better,
    level: float,
    seed: int,
    partitions: Sequence[int | None] | None,
) -> Difference:
    ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    both = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[both], theirs[both]
    if np.isfinite(ours).all() and np.isfinite(theirs).all():
        said = paired(ours, theirs, level=level, seed=seed)
    else:
        nothing, no_test = (math.nan, math.nan), Test(math.nan, math.nan)
        said = Paired(len(ours), math.nan, math.nan, nothing, nothing, math.nan, math.nan, no_test, no_test)
    return {
        "n": said.n,
        "mean": _known(said.mean),
        "std": _known(said.std),
        "interval": _bounds(said.interval),
        "t_interval": _bounds(said.t_interval),
        "effect_size": _known(said.effect_size),
        "rank_biserial": _known(said.rank_biserial),
        "t": _test(said.t),
        "wilcoxon": _test(said.wilcoxon),
        "significant": False,
        "improves": _improves(said.mean, way),
        "partitions_agree": _agreeing(ours, theirs, said.mean, partitions, both),
    }


def _improves(mean: float, way: Better) -> bool | None:
    if mean == 0 or math.isnan(mean) or way == "neither":
        return None
    return (mean > 0) == (way == "higher")


def _agreeing(
    ours: Floats, theirs: Floats, mean: float, partitions: Sequence[int | None] | None, both: np.ndarray
) -> list[int] | None:
    if partitions is None or mean == 0 or math.isnan(mean):
        return None
    owners = [partition for partition, there in zip(partitions, both, strict=True) if there]
    if None in owners:
        return None
    change, of = differences(ours, theirs), np.array(owners)
    signs = [float(np.sign(change[of == one].mean())) for one in np.unique(of)]
    return [signs.count(math.copysign(1.0, mean)), len(signs)]


def _known(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _number(known: float | None) -> float:
    return math.nan if known is None else known


def _bounds(interval: Interval) -> Unknown:
    return [_known(interval[0]), _known(interval[1])]


def _test(test: Test) -> Corrected:
    return {"statistic": _known(test.statistic), "p": _known(test.p), "p_holm": None}


def _check(
    values: Mapping[str, Mapping[str, ArrayLike]],
    baseline: str,
    metrics: Sequence[str],
    better: Mapping[str, Better],
    alpha: float,
    partitions: Sequence[int | None] | None,
) -> None:
    if baseline not in values:
        raise ValueError(
            f"compare: the baseline must be one of the methods, got {baseline!r}; there are {list(values)}"
        )
    if not 0 < alpha < 1:
        raise ValueError(f"compare: alpha must be between 0 and 1, got {alpha}; use 0.05")
    known = set(values[baseline])
    for label, of in values.items():
        if set(of) != known:
            raise ValueError(
                f"compare: every method needs the metrics of the baseline, got {sorted(of)} of {label!r}"
            )
    if missing := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"compare: tested metrics need values, got none of {missing}")
    if aimless := sorted(known - set(better)):
        raise ValueError(f"compare: which way is better must be said of every metric, got nothing of {aimless}")
    shapes = {np.shape(each) for of in values.values() for each in of.values()}
    shapes |= set() if partitions is None else {(len(partitions),)}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"compare: all need one value for each pair, got shapes {sorted(shapes)}")
