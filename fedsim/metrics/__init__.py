"""Metrics: one file each, per-example values that are summed by client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from fedsim import plugins
from fedsim.plugins import Plugin


class Metric(Plugin, ABC):
    """One number per example; a client's value is the mean over its test examples."""

    noun: ClassVar[str] = "metric"
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def per_example(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return one float value per example.

        Args:
            logits: [B, C].
            targets: [B] int64.

        Returns:
            [B] float32.
        """


def all_metrics() -> dict[str, Metric]:
    """Return every metric by name."""
    return {name: plugins.find(__name__, name, Metric)() for name in plugins.names(__name__)}  # type: ignore[type-abstract]
