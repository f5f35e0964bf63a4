"""Groups: accuracy and decisions by group of people (equalised odds: Hardt et al., NeurIPS 2016).

https://arxiv.org/abs/1610.02413
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Groups(Metric):
    """What the model does to each group that the data set names.

    Examples of no known group are left out, and so are groups without examples; differences are NaN with fewer
    than two groups. With two classes, demographic parity and equalised odds are those of fairlearn. MacroStd is
    our working definition of a name without a published one.
    """

    gives: ClassVar[Mapping[str, Value]] = {
        "group_accuracy": Value("Accuracy on the test examples of each group.", "higher", vector=True),
        "accuracy_gap": Value("Largest minus smallest accuracy over the groups.", "lower"),
        "demographic_parity": Value(
            "Demographic parity difference: largest difference between two groups in how often a class is "
            "predicted, over the classes (of two classes, either).",
            "lower",
        ),
        "equalised_odds": Value(
            "Equalised odds difference: largest difference between two groups in how often examples of one true "
            "class get one prediction, over both classes; of two classes, the larger of the differences in true "
            "and false positive rates.",
            "lower",
        ),
        "macro_std": Value(
            "MacroStd (our definition): population standard deviation of accuracy over groups, each counted once.",
            "lower",
        ),
    }
    needs_groups: ClassVar[bool] = True

    def sums(self, predictions: Predictions) -> Floats:
        """Return examples by group, class and prediction, [K, G C C].

        Raises:
            ValueError: The data set names no groups.
        """
        if predictions.groups is None:
            raise ValueError("metric groups: the examples have no groups; leave it out or name a data set that has")
        num_classes, num_groups = predictions.task
        known = predictions.groups >= 0
        cells = (predictions.groups * num_classes + predictions.labels) * num_classes + predictions.predicted
        # One more cell takes the examples of no known group.
        last = num_groups * num_classes * num_classes
        return predictions.by_client_and(np.where(known, cells, last), last + 1)[:, :last]

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return accuracies by group and the differences between groups."""
        num_classes, num_groups = task
        counts = sums.reshape(len(sums), num_groups, num_classes, num_classes)
        size = counts.sum(axis=(2, 3))
        accuracy = ratio(np.trace(counts, axis1=2, axis2=3), size)
        predicted = ratio(counts.sum(axis=2), size[:, :, None])  # P(prediction | group)
        given_class = ratio(counts, counts.sum(axis=3, keepdims=True))  # P(prediction | class, group)
        return {
            "group_accuracy": accuracy,
            "accuracy_gap": _range(accuracy),
            "demographic_parity": np.fmax.reduce(_range(predicted), axis=1),
            "equalised_odds": np.fmax.reduce(_range(given_class), axis=(1, 2)),
            "macro_std": _deviation(accuracy),
        }


def _range(rates: Floats) -> Floats:
    """Return largest minus smallest over the groups (axis 1) that have a rate; NaN with fewer than two."""
    known = ~np.isnan(rates)
    high, low = np.where(known, rates, -np.inf).max(axis=1), np.where(known, rates, np.inf).min(axis=1)
    return np.where(known.sum(axis=1) >= 2, high - low, np.nan)


def _deviation(rates: Floats) -> Floats:
    """Return the population standard deviation over the groups that have a rate, [K]; NaN with fewer than two."""
    known = ~np.isnan(rates)
    count = known.sum(axis=1)
    mean = ratio(np.where(known, rates, 0.0).sum(axis=1), count)
    squares = np.where(known, (np.where(known, rates, 0.0) - mean[:, None]) ** 2, 0.0)
    return np.where(count >= 2, np.sqrt(ratio(squares.sum(axis=1), count)), np.nan)
