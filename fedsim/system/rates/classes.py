"""Classes of devices, such as old telephones, new ones and laptops."""

from __future__ import annotations

from typing import Self, final

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, model_validator

from fedsim.system.crowd import Crowd, Floats
from fedsim.system.rates import Rates


@final
class Classes(Rates):
    """Client k is in class j with probability shares[j]: rate_k = values[j] * exp(sigma z_k).

    Which class a client is in is one draw for speed and bandwidths, so that tables with the same shares put the
    same clients in the same class, and a slow device may have a slow line.

    Attributes:
        shares: Share of the clients in each class; they add up to 1.
        values: Rate of each class; examples per second of a speed, Mbit/s of a bandwidth.
        sigma: Spread within a class: standard deviation of the logarithm.
    """

    shares: tuple[PositiveFloat, ...]
    values: tuple[PositiveFloat, ...]
    sigma: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _one_value_each(self) -> Self:
        if len(self.shares) != len(self.values) or not self.shares:
            raise ValueError(
                f"shares and values must be as many, one for each class, got {len(self.shares)} and "
                f"{len(self.values)}"
            )
        if abs(sum(self.shares) - 1.0) > 1e-6:
            raise ValueError(f"shares must add up to 1, got {sum(self.shares):g}")
        return self

    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return the rates; see `Rates.draw`."""
        places = np.searchsorted(np.cumsum(self.shares)[:-1], crowd.uniform("class"), side="right")
        spread = np.exp(self.sigma * crowd.normal(label)) if self.sigma else 1.0
        return np.asarray(np.array(self.values)[places] * spread, np.float64)
