"""DP-SGD: per-example clipping and noise, and the privacy spent (Abadi et al., arXiv 1607.00133, Algorithm 1)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, final

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from clients.hooks import Hook, Memory, Privacy, Shapes, Step
from fedsim.models import Outputs


@final
class DpSgd(Hook):
    """Steps along (sum_i clip(g_i, norm) + norm * noise * z) / B over batches of Poisson-sampled examples.

    epsilon is that of a client's whole sequence of updates up to now, for adding or removing one of its examples,
    by Renyi differential privacy as Opacus accounts for it. Each example joins a batch with probability B / N.

    Attributes:
        norm: Largest norm of an example's gradient.
        noise: Standard deviation of the noise over `norm`; 0 clips only, and epsilon is infinite.
        delta: Probability with which epsilon may fail.
    """

    norm: PositiveFloat = 1.0
    noise: NonNegativeFloat = 1.0
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5

    @property
    def privacy(self) -> Privacy:
        """Clipping and noise."""
        return Privacy(self.norm, self.noise)

    @property
    def stateful(self) -> bool:
        """Privacy is spent over all rounds."""
        return True

    def init(self, shapes: Shapes, targets: Tensor) -> Memory:
        """Keep the number of steps taken so far, and how likely an example is in a batch."""
        share = min(1.0, shapes.batch_size / len(targets))
        count, likely = torch.tensor([0.0, share], dtype=torch.float64, device=shapes.device).unbind()
        return {"steps": count.clone(), "_share": likely.clone()}

    def update(self, step: Step, outputs: Outputs, targets: Tensor) -> Memory:
        """Count the step."""
        del outputs, targets
        return {**step.memory, "steps": step.memory["steps"] + 1.0}

    def report(self, memory: Memory) -> Mapping[str, float]:
        """Return epsilon."""
        return {"epsilon": spent(self.noise, float(memory["_share"]), int(memory["steps"]), self.delta)}

    def notes(self) -> list[str]:
        """Say what epsilon is about."""
        return [
            f"dp_sgd_epsilon (delta {self.delta:g}) is about the updates a client sends, one example added or "
            "removed, for somebody who does not know the seed the noise comes from. Losses, example counts, "
            "evaluation numbers, DQN-Fed's rates and Ditto's own models are not covered by it."
        ]


@lru_cache(maxsize=4096)
def spent(noise: float, share: float, steps: int, delta: float) -> float:
    """Return epsilon after a number of steps, infinite without noise.

    Args:
        noise: Standard deviation of the noise over the clipping norm.
        share: Probability that an example is in a batch.
        steps: Steps taken.
        delta: Probability with which epsilon may fail.

    >>> spent(0.0, 0.1, 10, 1e-5), spent(1.0, 0.1, 0, 1e-5)
    (inf, 0.0)
    """
    if steps == 0:
        return 0.0
    if noise == 0:
        return float("inf")
    from opacus.accountants import RDPAccountant  # takes a second to import
    from opacus.accountants.analysis.rdp import get_privacy_spent

    orders = RDPAccountant.DEFAULT_ALPHAS
    total = steps * np.asarray(_one_step(noise, share))
    with warnings.catch_warnings():
        # At very small or large noise the bound could be tighter with other orders; it is a bound all the same.
        warnings.filterwarnings("ignore", "Optimal order is the")
        return float(get_privacy_spent(orders=orders, rdp=total, delta=delta)[0])


@lru_cache(maxsize=4096)
def _one_step(noise: float, share: float) -> tuple[float, ...]:
    """Return the Renyi divergence of one step at each order; it adds up over steps, and takes long."""
    from opacus.accountants import RDPAccountant
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = RDPAccountant.DEFAULT_ALPHAS
    return tuple(compute_rdp(q=share, noise_multiplier=noise, steps=1, orders=orders))
