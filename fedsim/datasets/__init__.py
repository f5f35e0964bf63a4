"""Data sets: one file each. A data set knows how to read its files; who owns what is the partition's business."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor

from fedsim.plugins import Plugin


@dataclass(frozen=True)
class Split:
    """Examples, their classes and, where the data name them, the groups of people they are about.

    Attributes:
        x: Inputs, [N, ...]: images [N, channels, height, width] float32, vectors [N, F] float32, or texts
            [N, length] uint8 character codes.
        y: Class numbers, [N] int64.
        groups: Group numbers, [N] int64, -1 where the group is not known; None where the data name no groups.
    """

    x: Tensor
    y: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"x and y must have the same length, got {len(self.x)} and {len(self.y)}")
        if self.groups is not None and len(self.groups) != len(self.y):
            raise ValueError(f"groups and y must have the same length, got {len(self.groups)} and {len(self.y)}")

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, rows: Any) -> Split:
        return Split(self.x[rows], self.y[rows], None if self.groups is None else self.groups[rows])

    def to(self, device: torch.device) -> Split:
        """Return the same examples on a device."""
        groups = None if self.groups is None else self.groups.to(device)
        return Split(self.x.to(device), self.y.to(device), groups)

    # NumPy arrays travel out of band, so that processes on one machine share one copy.
    def __getstate__(self) -> dict[str, Any]:
        tensors = {"x": self.x, "y": self.y, "groups": self.groups}
        return {name: None if tensor is None else tensor.cpu().numpy() for name, tensor in tensors.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            for name, array in state.items():
                object.__setattr__(self, name, None if array is None else torch.from_numpy(array))


@dataclass(frozen=True)
class Shard:
    """What one client owns: train and test examples of the same law."""

    train: Split
    test: Split


@dataclass(frozen=True)
class RawData:
    """A data set as read, before it is divided among clients.

    Attributes:
        train: The examples that clients will own (their own test shards are taken from these).
        test: The official test set common to all, or None.
        num_classes: Number of classes C.
        class_names: C names, for figures.
        owners: Natural owner of each train example ([N] of str: a hospital, a speaker), or None.
        prepare: Fitted on one client's train examples only and applied to both its splits (imputation,
            scaling), or None. Keeps the examples and their order; groups need not be handed on.
        group_names: G names of the groups that `train.groups` counts, or () without groups.
    """

    train: Split
    test: Split | None
    num_classes: int
    class_names: tuple[str, ...]
    owners: NDArray[np.str_] | None = None
    prepare: Callable[[Shard], Shard] | None = None
    group_names: tuple[str, ...] = ()


class Dataset(Plugin, ABC):
    """Reads one data set from the data root.

    Attributes:
        limit: Use only this many train examples, drawn with the partition's seed and the same number of each
            class as far as it goes; None uses all.
    """

    noun: ClassVar[str] = "data set"

    limit: PositiveInt | None = None

    @abstractmethod
    def load(self, root: Path) -> RawData:
        """Read the data set.

        Args:
            root: The data root, see `data_root`.

        Raises:
            DataError: Files are missing or unreadable; says which and where they come from.
        """


def data_root() -> Path:
    """Return the folder data sets are read from and downloaded to: FEDSIM_DATA, else a cache in the home."""
    return Path(os.environ.get("FEDSIM_DATA") or Path.home() / ".cache" / "fedsim").expanduser()
