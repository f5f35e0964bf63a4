"""Whole comparisons: identical methods are not told apart, planted gaps are found, and records are fit for JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsim.fairness import Better
from fedsim.statistics import compare, holm, paired
from fedsim.statistics.pairs import t_tests, wilcoxon_p

Floats = NDArray[np.float64]
METRICS = ("mean", "worst_10", "std")
BETTER: dict[str, Better] = {"mean": "higher", "worst_10": "higher", "std": "lower", "n": "neither"}
ALPHA = 0.05
LABELS = ("fedavg", "a", "b", "c", "d")
MIX = np.array([[1.0, 0.0, 0.0], [0.7, 0.7, 0.0], [-0.5, 0.3, 0.8]])
"""Makes three metrics of independent noise that hang together, the third against the first."""


def noise(draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return draw.normal(size=shape) @ MIX.T


def skewed(draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return draw.exponential(size=shape) @ MIX.T


def coarse(draw: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Accuracies on few examples: differences are 0 or tied more often than not."""
    return np.round(draw.normal(size=shape) @ MIX.T)


def studies(
    make: Callable[[np.random.Generator, tuple[int, ...]], Floats], count: int, pairs: int, seed: int
) -> Floats:
    """[count, pairs, methods, metrics]: what a pair has in common, and each method's own noise."""
    draw = np.random.default_rng(seed)
    return make(draw, (count, pairs, 1, 3)) + make(draw, (count, pairs, len(LABELS), 3))


def as_values(study: Floats) -> dict[str, dict[str, Floats]]:
    return {label: {metric: study[:, i, j] for j, metric in enumerate(METRICS)} for i, label in enumerate(LABELS)}


def corrected(every: Floats) -> Floats:
    """[count, methods - 1, metrics] corrected p of many studies at once, as compare() does for one."""
    change = np.moveaxis(every[:, :, 1:] - every[:, :, :1], 1, 0)
    count = change.shape[1]
    change = np.where(np.abs(change) < 1e-12, 0.0, change)
    return holm(t_tests(change)[1].reshape(count, -1)).reshape(count, len(LABELS) - 1, len(METRICS))


@pytest.mark.parametrize("make", [noise, skewed, coarse])
@pytest.mark.parametrize("pairs", [5, 10])
def test_identical_methods_are_seldom_told_apart(
    make: Callable[[np.random.Generator, tuple[int, ...]], Floats], pairs: int
) -> None:
    count = 4000
    claims = (corrected(studies(make, count, pairs, pairs)) < ALPHA).any(axis=(1, 2)).mean()
    assert claims <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / count)


def test_without_correction_they_would_be() -> None:
    every = studies(noise, 2000, 5, 5)
    change = np.moveaxis(every[:, :, 1:] - every[:, :, :1], 1, 0)
    assert (t_tests(change)[1] < ALPHA).any(axis=(1, 2)).mean() > 4 * ALPHA


@pytest.mark.parametrize("make", [noise, coarse])
@pytest.mark.parametrize("pairs", [5, 10])
def test_one_study_is_one_of_the_many(
    make: Callable[[np.random.Generator, tuple[int, ...]], Floats], pairs: int
) -> None:
    every = studies(make, 12, pairs, 17)
    many = corrected(every)
    for study, expected in zip(every, many, strict=True):
        found = compare(as_values(study), "fedavg", METRICS, BETTER)
        for i, label in enumerate(LABELS[1:]):
            for j, metric in enumerate(METRICS):
                said = found[label][metric]
                assert said is not None
                assert said["t"]["p_holm"] == pytest.approx(expected[i, j], rel=1e-6)
                assert said["significant"] == (expected[i, j] < ALPHA)


@pytest.mark.parametrize("pairs", [5, 10, 30])
def test_equal_methods_are_never_told_apart(pairs: int) -> None:
    draw = np.random.default_rng(pairs)
    for _ in range(20):
        shared = draw.uniform(size=(pairs, 1, 3))
        study = np.repeat(shared, len(LABELS), axis=1) * (1 + 2e-16 * np.arange(len(LABELS)))[:, None]
        for label, of in compare(as_values(study), "fedavg", METRICS, BETTER).items():
            for said in of.values():
                if label == "fedavg":
                    assert said is None
                    continue
                assert said is not None
                assert (said["t"]["p"], said["wilcoxon"]["p"], said["significant"]) == (1.0, 1.0, False)
                assert (said["mean"], said["effect_size"], said["improves"]) == (0.0, 0.0, None)


def test_a_planted_gap_is_found_and_nothing_else() -> None:
    count, gap = 2000, 2 * math.sqrt(2)  # 2 standard deviations of a difference of two methods
    every = studies(noise, count, 10, 3)
    every[:, :, 2, 0] += gap  # "b" in "mean"
    found = corrected(every) < ALPHA
    assert found[:, 1, 0].mean() > 0.95
    found[:, 1, 0] = False
    assert found.any(axis=(1, 2)).mean() <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / count)


@pytest.mark.parametrize(("metric", "way"), [("mean", 1), ("std", 1), ("mean", -1), ("std", -1)])
def test_a_planted_gap_has_its_sign(metric: str, way: int) -> None:
    hits = 0
    for study in studies(noise, 20, 10, 4):
        j = METRICS.index(metric)
        study[:, 2, j] += way * 2 * math.sqrt(2) * np.linalg.norm(MIX[j])
        said = compare(as_values(study), "fedavg", METRICS, BETTER)["b"][metric]
        assert said is not None
        hits += said["significant"]
        assert said["mean"] is not None
        assert said["mean"] * way > 0
        assert said["improves"] == ((way > 0) == (metric == "mean"))
        assert said["rank_biserial"] is not None
        assert said["rank_biserial"] * way > 0.5
    assert hits >= 18


def test_a_record_is_what_its_pairs_say() -> None:
    study = studies(noise, 1, 6, 0)[0]
    values = as_values(study)
    found = compare(values, "fedavg", ("mean", "std"), BETTER, level=0.9, seed=3)
    p = {
        (label, metric): paired(values[label][metric], values["fedavg"][metric])
        for label in LABELS[1:]
        for metric in ("mean", "std")
    }
    t, wilcoxon = holm([said.t.p for said in p.values()]), holm([said.wilcoxon.p for said in p.values()])
    for (label, metric), corrected_t, corrected_w in zip(p, t, wilcoxon, strict=True):
        said = found[label][metric]
        alone = paired(values[label][metric], values["fedavg"][metric], level=0.9, seed=3)
        assert said is not None
        assert (said["n"], said["mean"], said["std"]) == alone[:3]
        assert (tuple(said["interval"]), tuple(said["t_interval"])) == (alone.interval, alone.t_interval)
        assert (said["effect_size"], said["rank_biserial"]) == (alone.effect_size, alone.rank_biserial)
        assert said["t"] == {"statistic": alone.t.statistic, "p": alone.t.p, "p_holm": corrected_t}
        assert said["wilcoxon"]["p_holm"] == corrected_w
        assert said["partitions_agree"] is None


def test_other_metrics_are_described_and_not_tested() -> None:
    study = studies(noise, 1, 10, 0)[0]
    study[:, 1:, 2] += 9
    found = compare(as_values(study), "fedavg", ("mean",), BETTER)
    said = found["a"]["std"]
    assert said is not None
    assert said["t"]["p"] is not None
    assert said["t"]["p"] < 1e-3
    assert (said["t"]["p_holm"], said["wilcoxon"]["p_holm"], said["significant"]) == (None, None, False)
    assert said["improves"] is False
    assert compare(as_values(study), "fedavg", ("mean", "std"), BETTER)["a"]["std"]["significant"]  # type: ignore[index]


def test_few_pairs_claim_nothing() -> None:
    values = {"x": {"mean": [0.1, 0.2, 0.3, 0.4]}, "y": {"mean": [0.6, 0.7, 0.81, 0.9]}}
    few = compare(values, "x", ["mean"], BETTER)["y"]["mean"]
    assert few is not None
    assert few["t"]["p_holm"] is not None
    assert few["t"]["p_holm"] < 1e-3
    assert not few["significant"]
    assert compare(values, "x", ["mean"], BETTER, min_pairs=4)["y"]["mean"]["significant"]  # type: ignore[index]


def test_a_missing_run_costs_its_pair_for_its_method() -> None:
    values = as_values(studies(noise, 1, 8, 2)[0])
    whole = compare(values, "fedavg", METRICS, BETTER)
    holed = {label: {metric: of.copy() for metric, of in each.items()} for label, each in values.items()}
    for metric in METRICS:
        holed["a"][metric][3] = math.nan
    found = compare(holed, "fedavg", METRICS, BETTER)
    assert {said["n"] for said in found["a"].values() if said} == {7}
    kept = [i for i in range(8) if i != 3]
    for metric in METRICS:
        assert found["a"][metric]["t"]["p"] == paired(values["a"][metric][kept], values["fedavg"][metric][kept]).t.p  # type: ignore[index]
        assert found["b"][metric]["t"]["p"] == whole["b"][metric]["t"]["p"]  # type: ignore[index]

    holed["fedavg"]["mean"][:] = math.nan
    nothing = compare(holed, "fedavg", METRICS, BETTER)["b"]["mean"]
    assert nothing is not None
    assert (nothing["n"], nothing["mean"], nothing["interval"]) == (0, None, [None, None])
    assert (nothing["t"], nothing["significant"]) == ({"statistic": None, "p": None, "p_holm": None}, False)
    # The family is what was tested: two metrics of four methods.
    others = compare(holed, "fedavg", METRICS, BETTER)
    p = [others[label][metric]["t"]["p"] for label in LABELS[1:] for metric in METRICS[1:]]  # type: ignore[index]
    p_holm = [others[label][metric]["t"]["p_holm"] for label in LABELS[1:] for metric in METRICS[1:]]  # type: ignore[index]
    assert p_holm == holm(p).tolist()


def test_json_takes_whatever_comes_out() -> None:
    values = {
        "x": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, math.inf], "n": [5, 5, 5]},
        "diverged": {"mean": [0.1, math.nan, math.nan], "std": [1.0, math.inf, math.inf], "n": [5, 5, 5]},
        "constant": {"mean": [0.2, 0.3, 0.4], "std": [2.0, 2.0, 2.0], "n": [5, 5, 4]},
    }
    found = compare(values, "x", ["mean"], BETTER)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    constant, diverged = found["constant"]["mean"], found["diverged"]["std"]
    assert constant is not None
    assert diverged is not None
    assert (constant["t"]["statistic"], constant["effect_size"]) == (None, None)  # infinite
    assert constant["t"]["p"] == 0.25
    assert constant["improves"] is True
    assert (diverged["n"], diverged["mean"], diverged["improves"]) == (3, None, None)  # counted, not left out
    assert found["constant"]["n"]["improves"] is None  # type: ignore[index]


def test_partitions_that_agree() -> None:
    baseline = [0.5] * 6
    values = {"x": {"mean": baseline}, "y": {"mean": [0.6, 0.7, 0.6, 0.6, 0.4, 0.5]}, "same": {"mean": baseline}}
    owners = [0, 0, 1, 1, 2, 2]
    found = compare(values, "x", ["mean"], BETTER, partitions=owners)
    assert found["y"]["mean"]["partitions_agree"] == [2, 3]  # type: ignore[index]
    assert found["same"]["mean"]["partitions_agree"] is None  # type: ignore[index]
    alone = compare(values, "x", ["mean"], BETTER, partitions=[None] * 6)
    assert alone["y"]["mean"]["partitions_agree"] is None  # type: ignore[index]
    values["y"]["mean"][4:] = [math.nan, math.nan]
    fewer = compare(values, "x", ["mean"], BETTER, partitions=owners)
    assert fewer["y"]["mean"]["partitions_agree"] == [2, 2]  # type: ignore[index]


def test_nothing_depends_on_the_order_of_pairs_or_methods() -> None:
    study = studies(noise, 1, 7, 9)[0]
    values = as_values(study)
    found = compare(values, "fedavg", METRICS, BETTER, partitions=range(7))
    order = np.random.default_rng(0).permutation(7)
    turned = {label: values[label] for label in reversed(LABELS)}
    moved = {label: {metric: of[order] for metric, of in each.items()} for label, each in turned.items()}
    assert compare(moved, "fedavg", METRICS, BETTER, partitions=list(order)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "z"}, r"got 'z'; there are \['x', 'y'\]"),
        ({"metrics": ["worst_10"]}, r"got none of \['worst_10'\]"),
        ({"better": {}}, r"got nothing of \['mean'\]"),
        ({"alpha": 5}, "alpha must be between 0 and 1, got 5"),
        ({"partitions": [0]}, "one value for each pair"),
        ({"values": {"x": {"mean": [1.0]}, "y": {"std": [1.0]}}}, "needs the metrics of the baseline"),
        ({"values": {"x": {"mean": [1.0]}, "y": {"mean": [1.0, 2.0]}}}, "one value for each pair"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "values": {"x": {"mean": [0.1, 0.2]}, "y": {"mean": [0.1, 0.2]}},
        "baseline": "x",
        "metrics": ["mean"],
        "better": BETTER,
    }
    assert compare(**right)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        compare(**(right | change))  # type: ignore[arg-type]


def test_wilcoxon_of_five_pairs_cannot_reach_alpha() -> None:
    study = studies(noise, 1, 5, 0)[0]
    study[:, 1:] += 50
    found = compare(as_values(study), "fedavg", METRICS, BETTER)
    assert wilcoxon_p(np.arange(1.0, 6.0)) == 0.0625
    for label in LABELS[1:]:
        said = found[label]["mean"]
        assert said is not None
        assert said["significant"]
        assert said["wilcoxon"]["p"] == 0.0625
