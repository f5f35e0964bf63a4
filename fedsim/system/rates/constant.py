"""The same rate for every client."""

from __future__ import annotations

from typing import final

import numpy as np
from pydantic import PositiveFloat

from fedsim.system.crowd import Crowd, Floats
from fedsim.system.rates import Rates


@final
class Constant(Rates):
    """Everybody is equally fast.

    Attributes:
        value: Examples per second of a speed, Mbit/s of a bandwidth.
    """

    value: PositiveFloat

    def draw(self, crowd: Crowd, label: str) -> Floats:
        """Return `value` for everybody; see `Rates.draw`."""
        del label
        return np.full(crowd.num_clients, self.value)
