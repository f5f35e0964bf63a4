"""FedProx's pull towards the received weights, beside any aggregation rule (Li et al., arXiv 1812.06127, eq. 2)."""

from __future__ import annotations

from typing import final

from pydantic import NonNegativeFloat

from clients.hooks import Hook
from clients.methods import LocalRound, Terms


@final
class Proximal(Hook):
    """Adds mu / 2 ||w - theta||^2; mu = 0 is plain training.

    `strategy.name = "fedprox"` does the same by itself; beside it, both pulls add up.

    Attributes:
        mu: Weight of the pull.
    """

    mu: NonNegativeFloat = 0.01

    def terms(self, this: LocalRound) -> Terms:
        """Return the gradient of the term."""
        del this
        return Terms(proximal=self.mu)
