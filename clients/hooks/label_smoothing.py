"""Label smoothing in place of cross-entropy (Szegedy et al., CVPR 2016, arXiv 1512.00567, section 7)."""

from __future__ import annotations

from typing import Annotated, ClassVar, final

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from clients.hooks import Hook, Step
from fedsim.models import Outputs


@final
class LabelSmoothing(Hook):
    """Cross-entropy to (1 - epsilon) of the label and epsilon shared equally among all C classes.

    Attributes:
        epsilon: 0 is cross-entropy.
    """

    replaces_loss: ClassVar[bool] = True

    epsilon: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the smoothed loss of each example, [B]."""
        del step
        return cross_entropy(outputs.logits, targets, reduction="none", label_smoothing=self.epsilon)
