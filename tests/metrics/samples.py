"""Predictions to measure, and every metric there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import plugins
from fedsim.metrics import Metric, Predictions

NAMES = plugins.names("fedsim.metrics")
NUM_GROUPS = 3


def every_metric() -> dict[str, Metric]:
    return {name: plugins.find("fedsim.metrics", name, Metric)() for name in NAMES}  # type: ignore[type-abstract]


def predictions(
    sizes: Sequence[int] = (7, 0, 30, 1, 64), num_classes: int = 4, seed: int = 0, scale: float = 2.0
) -> Predictions:
    """Random logits; a third of them are right on purpose, and some examples have no known group."""
    rng = np.random.default_rng(seed)
    count = sum(sizes)
    targets = rng.integers(0, num_classes, count)
    logits = scale * rng.standard_normal((count, num_classes))
    logits[np.arange(count), targets] += rng.integers(0, 2, count) * scale
    return Predictions(
        torch.tensor(logits, dtype=torch.float32),
        torch.from_numpy(targets),
        np.repeat(np.arange(len(sizes)), sizes),
        len(sizes),
        rng.integers(-1, NUM_GROUPS, count),
        NUM_GROUPS,
    )


def one(
    logits: NDArray[np.float64] | torch.Tensor,
    targets: Sequence[int] | NDArray[np.int64],
    groups: Sequence[int] | None = None,
    num_groups: int = 0,
) -> Predictions:
    """Predictions of a single client."""
    labels = torch.as_tensor(np.asarray(targets, np.int64))
    numbers = None if groups is None else np.asarray(groups, np.int64)
    scores = torch.as_tensor(logits, dtype=torch.float32)
    return Predictions(scores, labels, np.zeros(len(labels), np.int64), 1, numbers, num_groups)


def rows(given: Predictions, kept: NDArray[np.bool_], *, merge: bool) -> Predictions:
    """Return some of the examples; with merge, as those of one client."""
    owners = given.owners[kept]
    return Predictions(
        given.logits[torch.from_numpy(kept)],
        given.targets[torch.from_numpy(kept)],
        np.zeros_like(owners) if merge else owners,
        1 if merge else given.num_clients,
        None if given.groups is None else given.groups[kept],
        given.num_groups,
    )


def value(metric: Metric, given: Predictions, name: str, client: int = 0) -> NDArray[np.float64]:
    """One value of a metric, computed for a client."""
    found: NDArray[np.float64] = metric.values(metric.sums(given), given.task)[name][client]
    return found


def said(classes: Sequence[int], num_classes: int) -> NDArray[np.float64]:
    """Logits with which these classes are predicted."""
    logits: NDArray[np.float64] = 3.0 * np.eye(num_classes)[np.asarray(classes)]
    return logits
