"""Logit adjustment by the client's class counts, in place of cross-entropy (Menon et al., arXiv 2007.07314)."""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from clients.hooks import Hook, Memory, Shapes, Step
from fedsim.models import Outputs


@final
class LogitAdjustment(Hook):
    """Cross-entropy of logits + tau log pi (eq. 10), pi the classes' shares in the client's train shard.

    The network then learns balanced scores: a class this client seldom sees is not pushed down for being rare. With
    label-skewed clients that is the calibration of FedLC (arXiv 2209.00189) in another form.

    Attributes:
        tau: 0 is cross-entropy.
        pseudo_count: Added to every class's count, so that an absent class has a share.
    """

    replaces_loss: ClassVar[bool] = True
    counts_classes: ClassVar[bool] = True

    tau: NonNegativeFloat = 1.0
    pseudo_count: PositiveFloat = 1.0

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        """Keep log pi, [C]."""
        counts = one_hot(targets, shapes.num_classes).sum(dim=0).to(shapes.dtype) + self.pseudo_count
        return {"log_prior": (counts / counts.sum()).log()}

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the adjusted loss of each example, [B]."""
        return cross_entropy(outputs.logits + self.tau * step.memory["log_prior"], targets, reduction="none")
