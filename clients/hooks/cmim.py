"""CMI minimised over temperatures, our reading of "towards undistillable models" (arXiv 2507.00012)."""

from __future__ import annotations

from typing import Annotated, final

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import log_softmax

from clients.hooks import Draws, Hook, Memory, Pass, Shapes, Step
from clients.hooks._centroids import class_means, class_sums, divergence, follow
from fedsim.models import Outputs


@final
class Cmim(Hook):
    """CMIM (our reading): adds lam E_a[KL(P^[a] || Q^[a]_y)], P^[a] = P^a / sum P^a at temperature 1 / a.

    The paper's text was not at hand: that cross-entropy is joined by the CMI of all temperature-scaled outputs is
    known, how the temperatures are put together is not. Here each step draws one a from (0, highest] for the
    client, and centroids are kept for buckets of a.

    Attributes:
        lam: Weight.
        highest: Largest power a.
        buckets: Sets of centroids, for equal parts of (0, highest].
        decay: Of the centroids' moving average, per step in their bucket.
    """

    lam: NonNegativeFloat = 0.5
    highest: PositiveFloat = 2.0
    buckets: PositiveInt = 8
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99

    @property
    def passes(self) -> Pass:
        """Centroids start as class means, at the middle of each bucket."""
        return "first"

    @property
    def stateful(self) -> bool:
        """The moving averages go on in the next round."""
        return True

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        """Start from uniform centroids, [buckets, C, C]."""
        del targets
        size = shapes.num_classes
        uniform = torch.full((self.buckets, size, size), 1.0 / size, dtype=shapes.dtype, device=shapes.device)
        return {"centroids": uniform}

    def collect(self, memory: Memory, outputs: Outputs, targets: Tensor, mask: Tensor) -> Memory:
        """Return sums and counts by bucket and class."""
        size = memory["centroids"].shape[1]
        width = self.highest / self.buckets
        found = [
            class_sums((outputs.logits * (width * (place + 0.5))).softmax(dim=1), targets, mask, size)
            for place in range(self.buckets)
        ]
        return {"sums": torch.stack([sums for sums, _ in found]), "counts": found[0][1]}

    def refit(self, memory: Memory, sums: Memory) -> Memory:
        """Set the centroids to the class means."""
        means = [
            class_means(sums["sums"][place], sums["counts"], memory["centroids"][place])
            for place in range(self.buckets)
        ]
        return {"centroids": torch.stack(means)}

    def draw(self, generator: torch.Generator, shape: tuple[int, ...]) -> Draws:
        """Draw a / highest, uniform on (0, 1]."""
        del shape
        return Draws(step=1.0 - torch.rand((), generator=generator, dtype=torch.float64))

    def loss(self, step: Step, outputs: Outputs, targets: Tensor) -> Tensor:
        """Return lam KL(P^[a] || Q^[a]_y) of each example, [B]."""
        logs, centroids, _ = self._here(step, outputs)
        return self.lam * divergence(logs, centroids, targets)

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:
        """Move the centroids of the bucket a fell into."""
        logs, centroids, chosen = self._here(step, outputs)
        sums, counts = class_sums(logs.exp(), targets, step.mask, len(centroids))
        moved = follow(centroids, class_means(sums, counts, centroids), self.decay)
        return {"centroids": torch.where(chosen, moved, step.memory["centroids"])}

    def _here(self, step: Step, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return log P^[a], the centroids of its bucket, and which that is, [buckets, 1, 1]."""
        assert step.draws.step is not None
        share = step.draws.step
        bucket = (share * self.buckets).ceil().clamp(min=1.0) - 1.0
        places = torch.arange(self.buckets, dtype=share.dtype, device=share.device)
        chosen = (places == bucket).view(-1, 1, 1)
        centroids = torch.where(chosen, step.memory["centroids"], 0.0).sum(dim=0)
        power = (share * self.highest).to(outputs.logits.dtype)
        return log_softmax(outputs.logits * power, dim=1), centroids, chosen
