"""TERM: losses count by their exponential, tilted to worst or best (Li et al., ICLR 2021, arXiv 2007.01162)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, final

import torch

from strategies.rules import Cohort, Direction, Facts, Rule


@final
class TERM(Rule):
    """Follows the gradient of (1/t) log sum_k p_k exp(t f_k) (eq. 2): weights p_k exp(t f_k) over their sum.

    With local epochs the update stands for the gradient. The weights have sum 1 in every round, so that t = 0 is
    FedAvg and server_lr keeps its meaning.

    Attributes:
        t: Tilt. 0 is FedAvg; larger is fairer, up to the worst client alone; below 0 the clients with small losses
            count more. 0.1, 1 and 5 are in use.
        weighting: p_k. "examples": n_k / sum n, as FedAvg has it. "uniform": 1 / K.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"t": (0.1, 1.0, 5.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    t: float = 1.0
    weighting: Literal["examples", "uniform"] = "examples"

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k w_k u_k, w_k = p_k exp(t f_k) / sum_j p_j exp(t f_j)."""
        losses = cohort.losses
        shares = cohort.weights if self.weighting == "examples" else torch.full_like(losses, 1.0 / len(losses))
        # From the loss that counts most, t f alone could be infinite for several clients.
        heaviest = losses.max() if self.t > 0 else losses.min()
        weights = torch.softmax(shares.log() + self.t * (losses - heaviest), dim=0)
        return Direction(cohort.combine(weights), weights, {"weight_max": float(weights.max())})
