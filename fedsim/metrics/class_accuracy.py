"""Accuracy by class: the share of each class's test examples that are recognised (recall)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class ClassAccuracy(Metric):
    """Right answers over examples, for each class; NaN for a class without examples."""

    gives: ClassVar[Mapping[str, Value]] = {
        "class_accuracy": Value(
            "Share of the test examples of each class that are recognised.", "higher", vector=True
        )
    }

    def sums(self, predictions: Predictions) -> Floats:
        """Return right answers and examples of each class, [K, 2 C]."""
        num_classes, right = predictions.task.num_classes, predictions.labels == predictions.predicted
        return np.concatenate(
            [
                predictions.by_client_and(predictions.labels, num_classes, right),
                predictions.by_client_and(predictions.labels, num_classes),
            ],
            axis=1,
        )

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return the share of right answers of each class, [K, C]."""
        del task
        right, truly = np.split(sums, 2, axis=1)
        return {"class_accuracy": ratio(right, truly)}
