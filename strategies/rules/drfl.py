"""DRFL: weights that follow the losses (Zhao, Joshi, ICASSP 2022).

https://rc.signalprocessingsociety.org/conferences/icassp-2022/spsicassp22vid0571
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from pydantic import NonNegativeFloat

from strategies.rules import Cohort, Direction, Facts, Rule


@final
class DRFL(Rule):
    """Averages the updates with weights f_k^q / sum_j f_j^q; numbers of examples play no part.

    Weights in proportion to f_k are those of the comparison in FedLF's public code; the paper's own text was not at
    hand, q is ours. The paper also selects clients with larger losses more often, which is no part of a rule.

    Attributes:
        q: Exponent of the loss. 1 is that code's; 0 is the plain mean of the updates.
    """

    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"q": (0.5, 1.0, 2.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    q: NonNegativeFloat = 1.0

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k f_k^q u_k / sum_j f_j^q."""
        largest = cohort.losses.max()
        # Over the largest f^q cannot overflow; where nobody has a loss all are equal.
        relative = cohort.losses / largest if largest > 0 else torch.ones_like(cohort.losses)
        weights = relative**self.q
        weights = weights / weights.sum()
        return Direction(cohort.combine(weights), weights, {"weight_max": float(weights.max())})
