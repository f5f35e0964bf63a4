"""q-FedAvg: clients with a high loss pull harder (Li et al., ICLR 2020, https://openreview.net/forum?id=ByexElSYDr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat

from strategies.rules import Cohort, Direction, Rule


@final
class QFedAvg(Rule):
    """Reweights updates by loss**q and divides by an estimate of the curvature (Algorithm 2).

    q = 0 is the plain mean of the updates, not the mean weighted by examples.

    Attributes:
        q: Exponent; larger is fairer.
        client_lr: The clients' learning rate, whose inverse estimates the Lipschitz constant; taken from
            client.lr when not given.
    """

    inherits: ClassVar[Mapping[str, str]] = {"client_lr": "client.lr"}

    q: NonNegativeFloat = 0.1
    client_lr: PositiveFloat

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k F_k^q L u_k / sum_k (q F_k^(q-1) ||L u_k||^2 + L F_k^q), F_k the loss.

        Numerator and denominator are divided by max F^q, which would overflow for a large q.
        """
        lipschitz = 1.0 / self.client_lr
        losses = cohort.losses + 1e-10  # keeps F^(q-1) finite when a client is fitted perfectly
        squares = torch.linalg.vector_norm(cohort.updates, dim=1, dtype=torch.float64).square().cpu()
        relative = losses / losses.max()
        step = lipschitz * relative**self.q
        curvature = self.q * relative**self.q / losses * lipschitz**2 * squares
        weights = step / (curvature + step).sum()
        return Direction(cohort.combine(weights), weights)
