"""Focal loss in place of cross-entropy (Lin et al., ICCV 2017, arXiv 1708.02002, eq. 4)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.hooks import Hook, Step
from fedsim.models import Outputs


@final
class Focal(Hook):
    """-(1 - p_y)^gamma log p_y: examples that are fitted well count less.

    Attributes:
        gamma: 0 is cross-entropy.
    """

    replaces_loss: ClassVar[bool] = True

    gamma: NonNegativeFloat = 2.0

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the focal loss of each example, [B]."""
        del step
        losses = cross_entropy(outputs.logits, targets, reduction="none")
        if self.gamma == 0:
            return losses
        # 1 - p without cancellation; the floor keeps the slope of a power below 1 finite at p = 1.
        missed = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).eps)
        return missed**self.gamma * losses
