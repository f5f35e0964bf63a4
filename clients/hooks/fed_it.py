"""Fed-IT's client loss: class centroids and smoothed labels (Fed-IT, ISIT 2024)."""

from __future__ import annotations

import math
from typing import Annotated, Literal, final

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Step
from clients.hooks._centroids import CentroidHook, divergence, kl, members
from fedsim.models import Outputs


@final
class FedIt(CentroidHook):
    """Adds lam KL(P || Q_y) + smooth_weight KL(P || S_y), S_y smooth: 1 - smoothing on the label.

    The other classes share what S_y leaves equally. The centroids are each client's own; the published code takes
    the means over 8 examples of each class at every step, here they are over the batch's examples.

    Attributes:
        lam: Weight of the divergence from the centroid.
        smooth_weight: Weight of the divergence from the smoothed label.
        smoothing: Probability S_y leaves for the other classes.
    """

    lam: NonNegativeFloat = 0.9
    smooth_weight: NonNegativeFloat = 0.07
    smoothing: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    centroids: Literal["alternate", "ema", "round", "frozen"] = "ema"

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the two divergences of each example, [B]."""
        logs = log_softmax(outputs.logits, dim=1)
        num_classes = logs.shape[1]
        # Tensors of the outputs' type: PyTorch makes float32 of two Python numbers.
        mine = logs.new_tensor(math.log(1.0 - self.smoothing))
        others = logs.new_tensor(math.log(self.smoothing / max(num_classes - 1, 1)))
        smooth = torch.where(members(targets, num_classes), mine, others)
        near = divergence(logs, step.memory["centroids"], targets)
        return self.lam * near + self.smooth_weight * kl(logs, smooth)
