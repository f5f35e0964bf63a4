"""Which examples a client's local steps see, and how they are augmented; drawn from its own generators.

The draws depend on nothing but the client, so training it alone and training it in a block see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from clients.hooks import Privacy
    from fedsim.settings import ClientSettings

Stream = Callable[[str], torch.Generator]
"""Purpose -> a client's generator of this round."""

CROP = 4
"""Pixels an image may move in each direction when it is cropped, as usual for CIFAR (He et al. 2016, sec. 4.2)."""


@dataclass(frozen=True)
class Epoch:
    """One pass over a client's shard.

    Attributes:
        rows: Examples in the order in which they are visited, numbered within the shard.
        sizes: Examples of each batch, summing to len(rows).
        shifts: Where the cropped image begins and whether it is flipped, one row (down, right, flip) per visit,
            or None without augmentation.
    """

    rows: Tensor
    sizes: tuple[int, ...]
    shifts: Tensor | None = None

    def first(self, count: int) -> Epoch:
        """Return the same pass cut off after a number of batches."""
        if count >= len(self.sizes):
            return self
        sizes = self.sizes[:count]
        end = sum(sizes)
        return Epoch(self.rows[:end], sizes, None if self.shifts is None else self.shifts[:end])


class Batches:
    """A client's batches of one round, epoch after epoch.

    Args:
        num_examples: Size of the shard.
        settings: Batch size and augmentation.
        stream: The client's generators.
        privacy: Set when batches are drawn at random instead of by shuffling.
    """

    def __init__(
        self, num_examples: int, settings: ClientSettings, stream: Stream, privacy: Privacy | None = None
    ) -> None:
        self._num_examples, self._settings = num_examples, settings
        self._poisson = privacy is not None
        self._order = stream("batches")
        self._augments = settings.augment != "none"
        self._shift = stream("augment") if self._augments else None

    def epoch(self) -> Epoch:
        """Draw the next pass."""
        rows, sizes = self._poisson_rows() if self._poisson else self._shuffled_rows()
        return Epoch(rows, sizes, self._shifts(len(rows)))

    def _shuffled_rows(self) -> tuple[Tensor, tuple[int, ...]]:
        size, count = self._settings.batch_size, self._num_examples
        sizes = [min(size, count - start) for start in range(0, count, size)]
        return torch.randperm(count, generator=self._order), tuple(sizes)

    def _poisson_rows(self) -> tuple[Tensor, tuple[int, ...]]:
        share = min(1.0, self._settings.batch_size / self._num_examples)
        steps = math.ceil(self._num_examples / self._settings.batch_size)
        joins = torch.rand(steps, self._num_examples, generator=self._order) < share
        return torch.nonzero(joins)[:, 1], tuple(joins.sum(dim=1).tolist())

    def _shifts(self, count: int) -> Tensor | None:
        if self._shift is None:
            return None
        moves = torch.randint(0, 2 * CROP + 1, (count, 2), generator=self._shift)
        flips = torch.randint(0, 2, (count, 1), generator=self._shift)
        if self._settings.augment == "flip":
            moves = torch.full_like(moves, CROP)
        return torch.cat([moves, flips], dim=1)


def num_steps(num_examples: int, batch_size: int, epochs: int, share: float = 1.0) -> int:
    """Return how many local steps a client takes.

    Args:
        num_examples: Size of its shard.
        batch_size: Examples per step.
        epochs: Passes over the shard of all its work.
        share: Share of its steps that it takes; at least one is taken.

    >>> num_steps(100, 32, 2), num_steps(100, 32, 2, 0.5)
    (8, 4)
    """
    total = epochs * math.ceil(num_examples / batch_size)
    return total if share >= 1.0 else max(1, round(share * total))


def num_visits(num_examples: int, batch_size: int, steps: int) -> int:
    """Return how many examples a number of steps goes through, the last batch of a pass being smaller.

    >>> num_visits(100, 32, 4), num_visits(100, 32, 5)
    (100, 132)
    """
    passes, left = divmod(steps, math.ceil(num_examples / batch_size))
    return passes * num_examples + min(left * batch_size, num_examples)


def augment(x: Tensor, shifts: Tensor) -> Tensor:
    """Crop and flip images.

    Each is cut at its own place out of itself with a border of `CROP` zeros, and mirrored where asked.

    Args:
        x: [..., channels, height, width].
        shifts: [..., 3]: rows from the top of the bordered image, columns from its left, 1 to mirror.
    """
    images = x.reshape(-1, *x.shape[-3:])
    down, right, mirror = shifts.reshape(-1, 3).to(x.device).unbind(dim=1)
    height, width = images.shape[-2:]
    columns = torch.arange(width, device=x.device)
    columns = torch.where(mirror.unsqueeze(1) > 0, width - 1 - columns, columns)
    rows = down.unsqueeze(1) + torch.arange(height, device=x.device)
    columns = right.unsqueeze(1) + columns
    bordered = pad(images, (CROP, CROP, CROP, CROP)).permute(0, 2, 3, 1)
    which = torch.arange(len(images), device=x.device).view(-1, 1, 1)
    cut = bordered[which, rows.unsqueeze(2), columns.unsqueeze(1)]
    return cut.permute(0, 3, 1, 2).reshape(x.shape)
