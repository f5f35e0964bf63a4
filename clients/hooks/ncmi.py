"""NCMI in place of cross-entropy, on features (Ye et al., arXiv 2601.02543)."""

from __future__ import annotations

from typing import Annotated, ClassVar, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor
from torch.func import grad
from torch.nn.functional import logsigmoid

from clients.hooks import Hook, Memory, Pass, Shapes, Step
from clients.hooks._centroids import class_means, class_sums, floored_log, kl, members, real_rows
from fedsim.models import Outputs

START = 10.0
"""Diagonal of the free centroids at the start, as published."""

OFF_DIAGONAL = 1e-6

ABSENT = 10.0
"""Nats by which a class without examples is farther than the farthest other one."""


@final
class Ncmi(Hook):
    """Minimises mean_i KL(P_i || Q_y) / ((1/C) sum_{c != y} KL(Q_c || P_i)) on the network's features z.

    h = (z - mu) / ||z - mu|| / temperature with a running centre mu, P = sigmax(h) = sigmoid(h) / sum sigmoid(h),
    and Q_c = sigmax(A_c) with free A, [C, F]. The last linear layer gets no gradient: a client predicts the class
    argmin_c KL(P || Q_c), with mu and Q_c the means over its own train shard at the weights evaluated, so a class
    it has no example of is never predicted. Loss and calibration are
    then those of softmax(-KL). The network needs at least as many features as there are classes.

    Attributes:
        temperature: T; 0.2 in the best published run.
        decay: Of the running centre, per step.
        centroid_lr: Learning rate of A; 0 leaves the centroids where they start. Published: 5 with a momentum of
            0.999999, from epoch 30 on.
    """

    replaces_loss: ClassVar[bool] = True
    predicts: ClassVar[bool] = True

    temperature: PositiveFloat = 0.2
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    centroid_lr: NonNegativeFloat = 0.0

    @property
    def passes(self) -> Pass:
        """The centre starts as the mean of the shard's features."""
        return "first"

    @property
    def stateful(self) -> bool:
        """Centre and centroids go on in the next round."""
        return True

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        """Start from A = 10 I, centre 0.

        Raises:
            ValueError: Fewer features than classes, or features that are the input itself.
        """
        del targets
        if not shapes.learned_features:
            raise ValueError("ncmi trains the features, and this model's are its input; use one with hidden layers")
        size, width = shapes.num_classes, shapes.num_features
        if width < size:
            raise ValueError(
                f"ncmi needs at least {size} features, one for each class, got {width}; widen the model"
            )
        free = torch.full((size, width), OFF_DIAGONAL, dtype=shapes.dtype, device=shapes.device)
        free[:, :size] += START * torch.eye(size, dtype=shapes.dtype, device=shapes.device)
        return {
            "centre": free.new_zeros(width),
            "free": free,
            "_means": log_sigmax(free).exp(),
            "_seen": free.new_zeros(size),
        }

    def collect(self, memory: Memory, outputs: Outputs, targets: Tensor, mask: Tensor) -> Memory:
        """Return sums of features, and of P at the present centre by class."""
        places = log_sigmax(self._normalised(memory["centre"], outputs.features)).exp()
        sums, counts = class_sums(places, targets, mask, len(memory["free"]))
        return {"features": real_rows(outputs.features, mask).sum(dim=0), "sums": sums, "counts": counts}

    def refit(self, memory: Memory, sums: Memory) -> Memory:
        """Set the centre, and the means by class at the centre before; a second pass brings them together."""
        counts = sums["counts"]
        return {
            **memory,
            "centre": sums["features"] / counts.sum(),
            "_means": class_means(sums["sums"], counts, memory["_means"]),
            "_seen": (counts > 0).to(counts.dtype),
        }

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return the ratio of each example, [B]."""
        logs = log_sigmax(self._normalised(step.memory["centre"], outputs.features))
        return self._ratio(logs, step.memory["free"], targets)

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:
        """Move the centre, and the centroids along their own gradient."""
        features = real_rows(outputs.features, step.mask)
        mean = features.sum(dim=0) / step.count
        centre = torch.where(
            step.mask.sum() > 0,
            self.decay * step.memory["centre"] + (1.0 - self.decay) * mean,
            step.memory["centre"],
        )
        free = step.memory["free"]
        if self.centroid_lr:
            logs = log_sigmax(self._normalised(step.memory["centre"], features))

            def mean_ratio(a: Tensor) -> Tensor:
                return torch.where(step.mask > 0, self._ratio(logs, a, targets), 0.0).sum() / step.count

            free = free - self.centroid_lr * grad(mean_ratio)(free)
        return {**step.memory, "centre": centre, "free": free}

    def notes(self) -> list[str]:
        """Say whose accuracy it is."""
        return [
            "With ncmi every client predicts the nearest class mean of its own train shard, so accuracy is that of "
            "personal classifiers on shared features: high before any training (see round 0), and not comparable "
            "with runs that predict from the shared model's last layer, which ncmi does not train."
        ]

    def scores(self, memory: Memory, outputs: Outputs) -> Tensor:
        """Return -KL(P || Q_c), [B, C]; classes the client has no example of come last."""
        logs = log_sigmax(self._normalised(memory["centre"], outputs.features))
        distances = kl(logs.unsqueeze(1), floored_log(memory["_means"]).unsqueeze(0))
        last = distances.amax(dim=1, keepdim=True) + ABSENT
        return -torch.where(memory["_seen"] > 0, distances, last)

    def _normalised(self, centre: Tensor, features: Tensor) -> Tensor:
        apart = features - centre
        squares = apart.square().sum(dim=1, keepdim=True)
        # Floored before the root: its slope at 0 is infinite.
        return apart / squares.clamp(min=torch.finfo(apart.dtype).eps ** 2).sqrt() / self.temperature

    @staticmethod
    def _ratio(logs: Tensor, free: Tensor, targets: Tensor) -> Tensor:
        centroids = log_sigmax(free)
        size = len(centroids)
        near = kl(logs, centroids[targets])
        away = kl(centroids.unsqueeze(0), logs.unsqueeze(1))  # KL(Q_c || P_i), [B, C]
        others = (away * ~members(targets, size)).sum(dim=1) / size
        return near / others.clamp(min=torch.finfo(logs.dtype).eps)


def log_sigmax(h: Tensor) -> Tensor:
    """Return log(sigmoid(h) / sum sigmoid(h)) along the last dimension."""
    logs = logsigmoid(h)
    return logs - logs.logsumexp(dim=-1, keepdim=True)
