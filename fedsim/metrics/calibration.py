"""Calibration: expected calibration error with bins of equal width (Guo et al., ICML 2017).

https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
from pydantic import PositiveInt

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Calibration(Metric):
    """ECE = sum_b n_b / n |accuracy_b - mean confidence_b|, over bins ((b - 1) / B, b / B] of the confidence.

    The confidence is the probability of the predicted class. The error of all clients' examples together is not
    the mean of the clients' errors: one client's overconfidence may meet another's doubt in one bin.

    Attributes:
        bins: Number of bins B.
    """

    gives: ClassVar[Mapping[str, Value]] = {
        "calibration": Value(
            "Expected calibration error: mean distance between confidence and accuracy over bins of equal width.",
            "lower",
        )
    }

    bins: PositiveInt = 15

    def sums(self, predictions: Predictions) -> Floats:
        """Return examples, summed confidence and right answers of each bin, [K, 3 bins]."""
        confidence = np.exp(predictions.log_probabilities.max(axis=1))
        known = np.nan_to_num(confidence)  # a model that has diverged has no confidence, and its loss says so
        bins = np.clip(np.ceil(known * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        right = predictions.labels == predictions.predicted
        parts = [
            predictions.by_client_and(bins, self.bins, values) for values in (np.ones(len(bins)), confidence, right)
        ]
        return np.concatenate(parts, axis=1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return the expected calibration error."""
        del task
        counts, confidence, right = np.split(sums, 3, axis=1)
        return {"calibration": ratio(np.abs(right - confidence).sum(1), counts.sum(1))}
