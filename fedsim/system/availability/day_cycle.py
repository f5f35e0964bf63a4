"""A rhythm of day and night: each client is there for the same share of the day, at hours of its own."""

from __future__ import annotations

from typing import Annotated, final

import numpy as np
from pydantic import Field, PositiveFloat

from fedsim.system.availability import Availability
from fedsim.system.crowd import TICK_S, Crowd, Floats, Moment


@final
class DayCycle(Availability):
    """Client k is there from phase_k for share * period_s seconds, then away until the next day.

    phase_k is uniform on [0, phase_spread * period_s). A client whose time ends before its answer is lost.

    Attributes:
        share: Share of the day that a client is there.
        period_s: Length of a day in seconds.
        phase_spread: 1 spreads the clients over the whole day, as over all time zones; 0 has all there together.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    period_s: PositiveFloat = 86400.0
    phase_spread: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0

    @property
    def certain(self) -> bool:
        """Whether every client is there in every round."""
        return self.share == 1.0

    def phases(self, crowd: Crowd) -> Floats:
        """Return when in the day each client comes, in seconds, [K]."""
        return crowd.uniform("availability", "phase") * self.phase_spread * self.period_s

    def remaining(self, moment: Moment) -> Floats:
        """Return what is left of each client's share of the day; see `Availability.remaining`."""
        if self.certain:
            return np.full(moment.crowd.num_clients, np.inf)
        since = np.mod(moment.time_s + TICK_S - self.phases(moment.crowd), self.period_s)
        return np.asarray(np.maximum(self.share * self.period_s - since, 0.0), np.float64)

    def wait(self, moment: Moment) -> float:
        """Return the seconds until the first client comes."""
        away = np.mod(self.phases(moment.crowd) - moment.time_s, self.period_s)
        return float(away.min())
