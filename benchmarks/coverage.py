"""How often 95 % intervals of a mean of few values contain the mean, and how wide they are; docs/statistics.md.

    OMP_NUM_THREADS=1 python -m benchmarks.coverage --samples 4000

Each sample is drawn from a distribution with a known mean. `percentile` and `BCa` are SciPy's, `bootstrap t` is the
ordinary studentised bootstrap, every resample with its exact probability for n up to 8; `beta t` is what
fedsim.statistics reports, and `beta t/n` the same with a variance that divides by n. Width is relative to
Student's interval of the same sample: the median over samples, and after it the 95th percentile.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from fedsim.statistics.intervals import beta_bootstrap_t

Floats = NDArray[np.float64]
Bounds = tuple[Floats, Floats]
LEVEL = 0.95
SIZES = (3, 5, 8, 10, 20)
RESAMPLES = 1999
CHUNK = 250

FAMILIES: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], Floats], float]] = {
    "normal": (lambda draw, shape: draw.normal(size=shape), 0.0),
    "exponential": (lambda draw, shape: draw.exponential(size=shape), 1.0),
    "beta(1, 9)": (lambda draw, shape: draw.beta(1, 9, size=shape), 0.1),
    "accuracies": (lambda draw, shape: draw.beta(40, 10, size=shape) - draw.beta(30, 10, size=shape), 0.05),
    "20 examples": (
        lambda draw, shape: np.round((draw.binomial(20, 0.8, shape) - draw.binomial(20, 0.75, shape)) / 20, 9),
        0.05,
    ),
}
"""Name -> (samples [n, count], their true mean). The last two are differences of two accuracies."""


def student(sample: Floats) -> Bounds:
    n = len(sample)
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sample.std(axis=0, ddof=1) / math.sqrt(n)
    return sample.mean(axis=0) - reach, sample.mean(axis=0) + reach


def scipys(method: str) -> Callable[[Floats], Bounds]:
    def bounds(sample: Floats) -> Bounds:
        with np.errstate(invalid="ignore"):  # the acceleration of equal values
            found = stats.bootstrap(
                (sample,), np.mean, axis=0, n_resamples=RESAMPLES, confidence_level=LEVEL, method=method, rng=1
            )
        return found.confidence_interval.low, found.confidence_interval.high

    return bounds


def resamples(n: int) -> tuple[Floats, Floats]:
    """Weights [B, n] and probabilities [B]: all of them for small n, else drawn."""
    if n > 8:
        drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
        return drawn / n, np.full(RESAMPLES, 1 / RESAMPLES)
    bars = np.array(list(itertools.combinations(range(2 * n - 1), n - 1)))
    edges = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), 2 * n - 1)], axis=1)
    counts = np.diff(edges, axis=1) - 1
    return counts / n, math.factorial(n) / special.factorial(counts).prod(axis=1) / float(n) ** n


def bootstrap_t(sample: Floats) -> Bounds:
    n = len(sample)
    weights, chances = resamples(n)
    spread = sample.std(axis=0, ddof=1)
    standard = (sample - sample.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    means = weights @ standard
    variances = np.maximum(weights @ standard**2 - means**2, 0.0) * n / (n - 1)
    variances[variances < 1e-12] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = np.where(means == 0, 0.0, means / np.sqrt(variances))
    order = np.argsort(pivots, axis=0)
    ascending = np.take_along_axis(pivots, order, axis=0)
    reached = np.cumsum(chances[order], axis=0)
    low, high = (
        np.take_along_axis(
            ascending, np.minimum((reached < q - 1e-12).sum(axis=0), len(chances) - 1)[None], axis=0
        )[0]
        for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    )
    middle = sample.mean(axis=0)
    with np.errstate(invalid="ignore"):  # 0 times infinity, for equal values
        return middle - np.where(spread > 0, high * spread, 0.0), middle - np.where(spread > 0, low * spread, 0.0)


def beta_t(sample: Floats) -> Bounds:
    ascending = np.sort(sample, axis=0)
    found = [
        beta_bootstrap_t(column, LEVEL, 0) if column[0] < column[-1] else (column[0], column[0])
        for column in ascending.T
    ]
    return tuple(np.array(found).T)


def beta_t_n(sample: Floats) -> Bounds:
    middle, shrink = sample.mean(axis=0), math.sqrt(1 - 1 / len(sample))
    low, high = beta_t(sample)
    return middle + (low - middle) * shrink, middle + (high - middle) * shrink


METHODS: dict[str, Callable[[Floats], Bounds]] = {
    "Student": student,
    "percentile": scipys("percentile"),
    "BCa": scipys("BCa"),
    "bootstrap t": bootstrap_t,
    "beta t/n": beta_t_n,
    "beta t": beta_t,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="samples of each size and family")
    count = parser.parse_args().samples
    warnings.filterwarnings(
        "ignore", category=stats.DegenerateDataWarning
    )  # BCa of equal values is NaN: not covered
    print(f"{count} samples each; standard error of a coverage of 95 %: {math.sqrt(0.0475 / count):.2%}")
    print("| n | values | " + " | ".join(METHODS) + " |")
    print("| --- " * (len(METHODS) + 2) + "|")
    for n in SIZES:
        for family, (draw, mean) in FAMILIES.items():
            sample = draw(np.random.default_rng(n), (n, count))
            cells = []
            usual = np.subtract(*student(sample)[::-1])
            for method in METHODS.values():
                chunks = [method(sample[:, at : at + CHUNK]) for at in range(0, count, CHUNK)]
                low, high = (np.concatenate(each) for each in zip(*chunks, strict=True))
                covered = np.mean((low <= mean + 1e-12) & (mean - 1e-12 <= high))
                with np.errstate(divide="ignore", invalid="ignore"):
                    width = ((high - low) / usual)[usual > 1e-9]
                # No interpolation: infinity is a value here.
                half, most = np.quantile(np.where(np.isnan(width), np.inf, width), [0.5, 0.95], method="lower")
                cells.append(f"{100 * covered:.1f} ({half:.2f}, {most:.2f})")
            print(f"| {n} | {family} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
