"""The clients as the system model sees them: a number of devices, and the random numbers that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import seeds

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

TICK_S = 1e-6
"""Resolution of the virtual clock: what begins within it has begun."""


@dataclass(frozen=True)
class Crowd:
    """All clients of a federation.

    Attributes:
        seed: The run's seed. No label names a method, so methods compared under one seed meet the same devices.
        num_clients: Number of clients K.
        root: The data root, where traces lie.
    """

    seed: int
    num_clients: int
    root: Path = Path()

    def uniform(self, *labels: object) -> Floats:
        """Return a number from [0, 1) for each client, [K]."""
        return _array(torch.rand(self.num_clients, dtype=torch.float64, generator=self._generator(*labels)))

    def normal(self, *labels: object) -> Floats:
        """Return a standard normal number for each client, [K]."""
        return _array(torch.randn(self.num_clients, dtype=torch.float64, generator=self._generator(*labels)))

    def _generator(self, *labels: object) -> torch.Generator:
        return seeds.generator(self.seed, "system", *labels)


@dataclass(frozen=True)
class Moment:
    """The beginning of a round.

    Attributes:
        crowd: The clients.
        server_round: Round, from 1.
        time_s: What the virtual clock says, in seconds since the run began.
    """

    crowd: Crowd
    server_round: int
    time_s: float


def _array(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.numpy(), np.float64)
