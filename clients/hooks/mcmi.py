"""MCMI: a teacher that keeps what its classes look like inside (Ye et al., ICLR 2024, arXiv 2401.08732)."""

from __future__ import annotations

from typing import Literal, final

from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Step
from clients.hooks._centroids import CentroidHook, divergence
from fedsim.models import Outputs


@final
class Mcmi(CentroidHook):
    """Adds -lam KL(P || Q_y): conditional mutual information is maximised along with the likelihood.

    Meant for a model that is trained already, for a few rounds; its centroids are then taken once. lam = 0 is plain
    training.

    Attributes:
        lam: Weight; 0.10 to 0.25 in the published code.
    """

    lam: NonNegativeFloat = 0.15
    centroids: Literal["alternate", "ema", "round", "frozen"] = "frozen"

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return -lam KL(P || Q_y) of each example, [B]."""
        return -self.lam * divergence(log_softmax(outputs.logits, dim=1), step.memory["centroids"], targets)
