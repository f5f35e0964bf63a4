"""q-FedAvg: clients with a high loss pull harder (Li et al., ICLR 2020, https://openreview.net/forum?id=ByexElSYDr)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat

from strategies.rules import Cohort, Direction, Facts, Rule


@final
class QFedAvg(Rule):
    """Reweights updates by loss**q and divides by an estimate of the curvature (Algorithm 2).

    q = 0 is the plain mean of the updates, not the mean weighted by examples.

    Attributes:
        q: Exponent; larger is fairer.
        client_lr: The clients' learning rate, whose inverse estimates the Lipschitz constant L; taken from
            client.lr when not given. Where the clients report the rate of the round (lr), that counts, so that
            a decaying rate is followed.
    """

    wants: ClassVar[tuple[str, ...]] = ("lr", "steps", "update-norm")

    inherits: ClassVar[Mapping[str, str]] = {"client_lr": "client.lr"}
    tunes: ClassVar[Mapping[str, tuple[float, ...]]] = {"q": (0.1, 1.0, 5.0)}
    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    q: NonNegativeFloat = 0.1
    client_lr: PositiveFloat

    def direction(self, cohort: Cohort) -> Direction:
        """Return sum_k F_k^q L u_k / sum_k (q F_k^(q-1) ||L u_k||^2 + L F_k^q), F_k the loss.

        Numerator and denominator are divided by max F^q, which would overflow for a large q.
        """
        reports = cohort.reports
        lipschitz = 1.0 / float(reports["lr"].mean()) if "lr" in reports else 1.0 / self.client_lr
        # Without local steps the updates are gradients already (q-FedSGD), otherwise L u estimates one.
        length = 1.0 if "steps" in reports and not bool(reports["steps"].any()) else lipschitz
        losses = cohort.losses + 1e-10  # keeps F^(q-1) finite when a client is fitted perfectly
        # The clients know their norms; reading K rows once more is for those that do not say.
        norms = reports.get("update-norm")
        if norms is None:
            norms = torch.linalg.vector_norm(cohort.updates, dim=1, dtype=torch.float64).cpu()
        relative = losses / losses.max()
        lift = relative**self.q
        curvature = self.q * lift / losses * (length * norms).square()
        weights = length * lift / (curvature + lipschitz * lift).sum()
        return Direction(cohort.combine(weights), weights)
