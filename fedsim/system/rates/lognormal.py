"""Rates whose logarithm is normal: most clients near the median, a few far slower, a few far faster."""

from __future__ import annotations

from typing import final

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from fedsim.system.crowd import Crowd, Floats
from fedsim.system.rates import Rates


@final
class Lognormal(Rates):
    """rate_k = median * exp(sigma z_k), z_k standard normal.

    Attributes:
        median: Half of the clients are slower; examples per second of a speed, Mbit/s of a bandwidth.
        sigma: Standard deviation of the logarithm: about two thirds of the clients are within a factor exp(sigma).
    """

    median: PositiveFloat
    sigma: NonNegativeFloat = 0.5

    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return the rates; see `Rates.draw`."""
        return np.asarray(self.median * np.exp(self.sigma * crowd.normal(label)), np.float64)
