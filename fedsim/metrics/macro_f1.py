"""Macro F1: the mean over classes of the harmonic mean of precision and recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class MacroF1(Metric):
    """Mean of F1_c = 2 TP_c / (predicted c + truly c) over the classes that occur.

    A class occurs if it is some example's class or some prediction; a class that is only predicted has F1 = 0.
    scikit-learn's f1_score(average="macro") follows the same convention when it is given no labels.
    """

    gives: ClassVar[Mapping[str, Value]] = {
        "macro_f1": Value(
            "Mean of the F1 scores of the classes, over classes that occur among targets or predictions.", "higher"
        )
    }

    def sums(self, predictions: Predictions) -> Floats:
        """Return true positives, predictions and examples of each class, [K, 3 C]."""
        num_classes = predictions.task.num_classes
        truly = predictions.by_client_and(predictions.labels, num_classes)
        said = predictions.by_client_and(predictions.predicted, num_classes)
        right = predictions.by_client_and(
            predictions.labels, num_classes, predictions.labels == predictions.predicted
        )
        return np.concatenate([right, said, truly], axis=1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return the mean F1 score."""
        right, said, truly = np.split(sums, 3, axis=1)
        del task
        scores = ratio(2 * right, said + truly)
        occurs = said + truly > 0
        return {"macro_f1": ratio(np.where(occurs, scores, 0.0).sum(1), occurs.sum(1))}
