"""The table [evaluation] of a scenario: when the clients are evaluated, and by which measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt, field_validator

from fedsim.metrics import Metric, clashes
from fedsim.plugins import Options, Plugin


class EvaluationSettings(Options):
    """When the model is evaluated on every client, and by which measures.

    Attributes:
        every: Rounds between evaluations; the initial and the final model are always evaluated.
        metrics: What is measured beside accuracy and loss: names, or tables with a name and options.
        validation: Share of each client's train shard that is held out and evaluated on in place of its test shard,
            which nothing then looks at: for tuning. None evaluates on the test shards.
    """

    lists: ClassVar[Mapping[str, tuple[str, type[Plugin]]]] = {"metrics": ("fedsim.metrics", Metric)}

    every: PositiveInt = 1
    metrics: tuple[Metric, ...] = ()
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None

    @field_validator("metrics")
    @classmethod
    def _no_column_twice(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        problems = list(clashes(metrics))
        if problems:
            raise ValueError("; ".join(problems))
        return metrics
