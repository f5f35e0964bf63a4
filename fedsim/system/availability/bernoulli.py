"""A coin for each client and round: it is there with a probability, of its own where they differ."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, final

import numpy as np
from pydantic import Field, PositiveFloat
from scipy.special import betaincinv

from fedsim.system.availability import Availability
from fedsim.system.crowd import Crowd, Floats, Moment

LEAST = 1e-3
"""Smallest probability of a client: a Beta law of wide spread has clients that would never come."""


@final
class Bernoulli(Availability):
    """Client k is there with probability p_k, drawn anew in each round; who is there stays for the round.

    Attributes:
        p: Probability, of every client or, with a concentration, the mean over clients.
        concentration: c draws p_k from Beta(p c, (1 - p) c), whose variance is p (1 - p) / (c + 1), and not below
            0.001; None gives every client p.
        retry_s: Seconds after which the server asks again when nobody was there.
    """

    p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    concentration: PositiveFloat | None = None
    retry_s: PositiveFloat = 60.0

    @property
    def certain(self) -> bool:
        """Whether every client is there in every round."""
        return self.p == 1.0

    def probabilities(self, crowd: Crowd) -> Floats:
        """Return p_k, [K]."""
        if self.concentration is None or self.p == 1.0:
            return np.full(crowd.num_clients, self.p)
        return _drawn(self.p * self.concentration, (1.0 - self.p) * self.concentration, crowd)

    def remaining(self, moment: Moment) -> Floats:
        """Return infinity for those whose coin fell well; see `Availability.remaining`."""
        coins = moment.crowd.uniform("availability", "coin", moment.server_round)
        return np.where(coins < self.probabilities(moment.crowd), np.inf, 0.0)

    def wait(self, moment: Moment) -> float:
        """Return `retry_s`."""
        del moment
        return self.retry_s


@lru_cache(maxsize=8)  # asked in every round, and slow for many clients
def _drawn(a: float, b: float, crowd: Crowd) -> Floats:
    """Return numbers from Beta(a, b) by its inverse distribution, [K]."""
    found = np.asarray(betaincinv(a, b, crowd.uniform("availability", "probability")), np.float64)
    found = np.clip(found, LEAST, 1.0)
    found.setflags(write=False)  # the next round is given the same array
    return found
