"""Accuracy: the share of test examples whose most likely class is the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Accuracy(Metric):
    """Right answers over examples; the largest logit answers, the lowest class on a tie."""

    gives: ClassVar[Mapping[str, Value]] = {
        "accuracy": Value("Share of the test examples whose largest logit is that of their class.", "higher")
    }
    pooled: ClassVar[bool] = False  # its mean weighted by examples, which every summary holds, is the pooled value

    def sums(self, predictions: Predictions) -> Floats:
        """Return right answers and examples, [K, 2]."""
        right = predictions.by_client(predictions.predicted == predictions.labels)
        return np.stack([right, predictions.by_client(np.ones(len(predictions.labels)))], axis=1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return the share of right answers."""
        del task
        return {"accuracy": ratio(sums[:, 0], sums[:, 1])}
