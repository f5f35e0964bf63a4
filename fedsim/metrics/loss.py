"""Loss: the cross entropy of each test example, in nats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
from torch.nn import functional

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Loss(Metric):
    """Mean of -log softmax(logits)[target]."""

    gives: ClassVar[Mapping[str, Value]] = {
        "loss": Value("Mean cross entropy of the test examples, in nats.", "lower")
    }
    pooled: ClassVar[bool] = False  # as for the accuracy

    def sums(self, predictions: Predictions) -> Floats:
        """Return the sum of the losses and the number of examples, [K, 2]."""
        # Each loss in float32 as in training, their sum in float64.
        losses = functional.cross_entropy(predictions.logits, predictions.targets, reduction="none").numpy()
        return np.stack([predictions.by_client(losses), predictions.by_client(np.ones(len(losses)))], axis=1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        """Return the mean loss."""
        del task
        return {"loss": ratio(sums[:, 0], sums[:, 1])}
