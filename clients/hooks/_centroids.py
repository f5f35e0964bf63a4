"""What the hooks around class centroids share: Q_y, the mean of a client's output distributions on class y.

For fixed weights the centroids that minimise E[KL(P_X || Q_Y)] are these means (arXiv 2309.09123), so training
alternates between weights and centroids, or follows them by a moving average.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Hook, Memory, Pass, Shapes, Step
from fedsim.models import Outputs


class CentroidHook(Hook, ABC):
    """Keeps a client's own centroids.

    Attributes:
        centroids: "alternate": set to the class means at the start of every epoch, fixed within it. "ema": class
            means at a client's first participation, then a moving average over its steps, kept between rounds.
            "round": class means at the start of every round. "frozen": class means at the first participation, for
            good.
        decay: Of the moving average, per step.
    """

    centroids: Literal["alternate", "ema", "round", "frozen"] = "alternate"
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999

    @property
    def passes(self) -> Pass:
        """When the class means are taken."""
        when: dict[str, Pass] = {"alternate": "epoch", "ema": "first", "round": "round", "frozen": "first"}
        return when[self.centroids]

    @property
    def stateful(self) -> bool:
        """Whether centroids last longer than a round."""
        return self.centroids in ("ema", "frozen")

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        """Start from uniform centroids, [C, C]."""
        del targets
        size = shapes.num_classes
        uniform = torch.full((size, size), 1.0 / size, dtype=shapes.dtype, device=shapes.device)
        zero = torch.zeros((), dtype=shapes.dtype, device=shapes.device)
        return {"centroids": uniform, "_divergence": zero, "_steps": zero}

    def collect(self, memory: Memory, outputs: Outputs, targets: Tensor, mask: Tensor) -> Memory:
        """Return sums and counts of the output distributions by class."""
        sums, counts = class_sums(outputs.logits.softmax(dim=1), targets, mask, len(memory["centroids"]))
        return {"sums": sums, "counts": counts}

    def refit(self, memory: Memory, sums: Memory) -> Memory:
        """Set the centroids to the class means; a class without examples keeps what it had."""
        return {**memory, "centroids": class_means(sums["sums"], sums["counts"], memory["centroids"])}

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:
        """Move the centroids, and take down how far the outputs are from them."""
        memory = step.memory
        logs = log_softmax(outputs.logits, dim=1)
        distance = divergence(logs, memory["centroids"], targets)
        real = torch.where(step.mask > 0, distance, 0.0)
        after = {
            **memory,
            "_divergence": memory["_divergence"] + real.sum() / step.count,
            "_steps": memory["_steps"] + 1.0,
        }
        if self.centroids == "ema":
            old = memory["centroids"]
            sums, counts = class_sums(logs.exp(), targets, step.mask, len(old))
            after["centroids"] = follow(old, class_means(sums, counts, old), self.decay)
        return after

    def report(self, memory: Memory) -> Mapping[str, float]:
        """Return the mean of KL(P || Q_y) over the local steps, in nats."""
        return {"concentration": float(memory["_divergence"] / memory["_steps"].clamp(min=1.0))}


def class_sums(rows: Tensor, targets: Tensor, mask: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the sum of rows by class, [C, M], and the number of examples of each class, [C].

    Args:
        rows: [B, M].
        targets: [B].
        mask: [B].
        num_classes: C.
    """
    member = members(targets, num_classes) * mask.unsqueeze(1)
    return member.T @ real_rows(rows, mask), member.sum(dim=0)


def real_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """Return rows with 0 in those that only fill up: they may hold NaN, and 0 times that is not 0.

    Args:
        rows: [B, M].
        mask: [B].
    """
    return torch.where(mask.unsqueeze(1) > 0, rows, 0.0)


def members(targets: Tensor, num_classes: int) -> Tensor:
    """Return whether each example is of each class, [B, C]; `one_hot` of PyTorch cannot be mapped over clients."""
    return targets.unsqueeze(1) == torch.arange(num_classes, device=targets.device)


def class_means(sums: Tensor, counts: Tensor, otherwise: Tensor) -> Tensor:
    """Return sums / counts by class, and `otherwise` for classes without examples, [C, M]."""
    means = sums / counts.clamp(min=1.0).unsqueeze(1)
    return torch.where(counts.unsqueeze(1) > 0, means, otherwise)


def follow(old: Tensor, new: Tensor, decay: float) -> Tensor:
    """Return decay * old + (1 - decay) * new, rows summing to 1."""
    moved = decay * old + (1.0 - decay) * new
    return moved / moved.sum(dim=-1, keepdim=True)


def divergence(logs: Tensor, centroids: Tensor, targets: Tensor) -> Tensor:
    """Return KL(P || Q_y) of each example, [B], in nats.

    Args:
        logs: log P, [B, M]; finite, so that P log P is 0 where P underflows.
        centroids: [C, M].
        targets: [B].
    """
    return kl(logs, floored_log(centroids)[targets])


def kl(logs: Tensor, others: Tensor) -> Tensor:
    """Return sum_i p_i (log p_i - log q_i) along the last dimension, from logarithms."""
    return (logs.exp() * (logs - others)).sum(dim=-1)


def floored_log(probabilities: Tensor) -> Tensor:
    """Return the logarithm of probabilities that may have underflowed to 0."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
