"""Every client is there in every round."""

from __future__ import annotations

from typing import final

import numpy as np

from fedsim.system.availability import Availability
from fedsim.system.crowd import Floats, Moment


@final
class Always(Availability):
    """Nobody is ever away."""

    @property
    def certain(self) -> bool:
        """Whether every client is there in every round: yes."""
        return True

    def remaining(self, moment: Moment) -> Floats:
        """Return infinity for everybody; see `Availability.remaining`."""
        return np.full(moment.crowd.num_clients, np.inf)

    def wait(self, moment: Moment) -> float:
        """Never asked: somebody is always there."""
        raise AssertionError(f"round {moment.server_round}: always means that somebody is there")
