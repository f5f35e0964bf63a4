"""Hooks of somebody else's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from clients.hooks import Hook, Memory, Shapes, Step
from fedsim.models import Outputs


@final
class ConfidencePenalty(Hook):
    """Subtracts weight * H(P): confident outputs cost something (Pereyra et al., arXiv 1701.06548, eq. 1)."""

    weight: NonNegativeFloat = 0.1

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        del targets
        zero = torch.zeros((), dtype=shapes.dtype, device=shapes.device)
        return {"steps": zero, "_entropy": zero}

    @property
    def stateful(self) -> bool:
        return True

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        del step, targets
        return -self.weight * entropy(outputs)

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:
        del targets
        mean = torch.where(step.mask > 0, entropy(outputs), 0.0).sum() / step.count
        return {"steps": step.memory["steps"] + 1.0, "_entropy": step.memory["_entropy"] + mean}

    def report(self, memory: Memory) -> Mapping[str, float]:
        return {"entropy": float(memory["_entropy"]), "all-steps": float(memory["steps"])}


@final
class Loud(Hook):
    """Reports under the name that the other hook of this file has."""

    def report(self, memory: Memory) -> Mapping[str, float]:
        del memory
        return {"entropy": -1.0}


def entropy(outputs: Outputs) -> Tensor:
    logs = outputs.logits.log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1)


@final
class Matrix(Hook):
    """A mistake that broadcasting would hide: [B, 1] instead of [B]."""

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        del step, targets
        return outputs.logits.logsumexp(dim=1, keepdim=True)


@final
class Branching(Hook):
    """Looks at numbers in Python, which one client can and a block cannot."""

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        del step, targets
        return outputs.logits.sum(dim=1) * (1e-3 if outputs.logits.max() > 0 else 2e-3)


@final
class Broken(Hook):
    """Raises what nobody expects."""

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        del step, outputs, targets
        raise KeyError("lost")
