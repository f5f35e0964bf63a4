"""Distillation from the received model or a teacher of one's own: KD, TTM and WTTM."""

from __future__ import annotations

from typing import Literal, final

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Hook, Step
from clients.hooks._centroids import kl
from fedsim.models import Outputs


@final
class Distill(Hook):
    """Adds the divergence of the teacher's softened outputs p_T from the client's q.

    "kd": beta T^2 KL(p_T || q_T) (Hinton et al., arXiv 1503.02531). "ttm": beta KL(p_T || q), no temperature on the
    student (Zheng and Yang, ICLR 2024, arXiv 2402.11148). "wttm": the same with each example weighted by
    sum_j p_j^(1/T), which is large where the teacher is unsure. The published beta of TTM is 45 at T = 10.

    Attributes:
        kind: See above.
        weight: beta, beside a weight of 1 for the loss it joins.
        temperature: T.
        source: "received": the weights received this round. Otherwise a safetensors file of the scenario's model,
            such as the model of another run.
    """

    kind: Literal["kd", "ttm", "wttm"] = "kd"
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 2.0
    source: str = "received"

    @property
    def teacher(self) -> str:
        """Where the teacher's weights come from."""
        return self.source

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the divergence of each example, [B]."""
        del targets
        assert step.teacher is not None
        softened = log_softmax(step.teacher.logits / self.temperature, dim=1)
        if self.kind == "kd":
            student = log_softmax(outputs.logits / self.temperature, dim=1)
            return self.weight * self.temperature**2 * kl(softened, student)
        distance = kl(softened, log_softmax(outputs.logits, dim=1))
        if self.kind == "wttm":
            powers = log_softmax(step.teacher.logits, dim=1) / self.temperature
            distance = distance * powers.exp().sum(dim=1)
        return self.weight * distance
