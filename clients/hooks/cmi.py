"""CMI-constrained deep learning: outputs near their class's centroid, classes apart (arXiv 2309.09123)."""

from __future__ import annotations

from typing import Literal, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Step
from clients.hooks._centroids import CentroidHook, divergence, real_rows
from fedsim.models import Outputs


@final
class Cmi(CentroidHook):
    """Adds lam * I - beta * Gamma: I = E[KL(P_X || Q_Y)] concentrates, Gamma = E[1{Y != V} H(P_X, P_U)] separates.

    (X, Y) and (U, V) are two draws of an example and its class; both means are over the batch. lam = beta = 0 is
    plain training. I is bounded, Gamma is not: with a large beta the logits grow without end.

    Attributes:
        lam: Weight of the conditional mutual information I.
        beta: Weight of the separation Gamma.
        separation: "cross_entropy": H(P_X, P_U). "kl": KL(P_X || P_U), which lacks the entropy of P_X.
    """

    lam: NonNegativeFloat = 0.7
    beta: NonNegativeFloat = 0.0
    separation: Literal["cross_entropy", "kl"] = "cross_entropy"

    @property
    def batch_loss(self) -> bool:
        """Separation is about pairs of examples."""
        return self.beta > 0

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return lam KL(P_i || Q_y) - beta / B sum_j 1{y_i != y_j} H(P_i, P_j), [B]."""
        logs = log_softmax(outputs.logits, dim=1)
        joined = self.lam * divergence(logs, step.memory["centroids"], targets)
        if self.beta:
            joined = joined - self.beta * separation(logs, targets, step.mask, self.separation) / step.count
        return joined


def separation(logs: Tensor, targets: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Return sum_j 1{y_i != y_j} H(P_i, P_j) (or KL) of each example, [B].

    Args:
        logs: log P, [B, C].
        targets: [B].
        mask: [B].
        kind: "cross_entropy" or "kl".
    """
    logs = real_rows(logs, mask)
    probabilities = logs.exp()
    apart = (targets.unsqueeze(1) != targets.unsqueeze(0)) * mask.unsqueeze(0)
    between = -(probabilities @ logs.T)
    if kind == "kl":
        between = between + (probabilities * logs).sum(dim=1, keepdim=True)
    return torch.where(apart > 0, between, 0.0).sum(dim=1)
