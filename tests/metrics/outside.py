"""A metric of somebody else's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
from pydantic import PositiveFloat

from fedsim.metrics import Floats, Metric, Predictions, Task, Value, ratio


@final
class Brier(Metric):
    gives: ClassVar[Mapping[str, Value]] = {"brier": Value("Brier score, moved down.", "lower")}

    shift: PositiveFloat = 1.0

    def sums(self, predictions: Predictions) -> Floats:
        p = np.exp(predictions.log_probabilities)
        p[np.arange(len(p)), predictions.labels] -= 1.0
        scores = predictions.by_client((p * p).sum(axis=1))
        return np.stack([scores, predictions.by_client(np.ones(len(p)))], axis=1)

    def values(self, sums: Floats, task: Task) -> dict[str, Floats]:
        del task
        return {"brier": ratio(sums[:, 0], sums[:, 1]) - self.shift}
