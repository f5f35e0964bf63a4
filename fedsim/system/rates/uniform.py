"""Rates that are uniform between two bounds."""

from __future__ import annotations

from typing import Self, final

from pydantic import PositiveFloat, model_validator

from fedsim.system.crowd import Crowd, Floats
from fedsim.system.rates import Rates


@final
class Uniform(Rates):
    """rate_k = low + (high - low) u_k, u_k uniform on [0, 1).

    Attributes:
        low: Slowest; examples per second of a speed, Mbit/s of a bandwidth.
        high: Fastest.
    """

    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must be at most high = {self.high:g}, got {self.low:g}")
        return self

    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return the rates; see `Rates.draw`."""
        return self.low + (self.high - self.low) * crowd.uniform(label)
