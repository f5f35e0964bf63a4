"""Data sets: one file each. A data set knows how to read its files; who owns what is the partition's business."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator
from torch import Tensor

from fedsim.errors import DataError
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
        classes: Keep only the examples of these classes, of the official test set too; they are numbered anew in
            the order given. None keeps all.
        pool_test: Divide the official test set among the clients together with the train examples, so that their
            own test shards are all there is to test on, as some papers do.
    """

    noun: ClassVar[str] = "data set"

    limit: PositiveInt | None = None
    classes: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] | None = None
    pool_test: bool = False

    @field_validator("classes")
    @classmethod
    def _no_class_twice(cls, classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
        twice = sorted({number for number in classes or () if (classes or ()).count(number) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(str, twice))} is there more than once, keep one of them")
        return classes

    def read(self, root: Path) -> RawData:
        """Read the data set and keep what `classes` and `pool_test` say; `limit` is the federation's business.

        Args:
            root: The data root, see `data_root`.

        Raises:
            DataError: It cannot be read, or has not got what these options ask for.
        """
        raw = self.load(root)
        if self.classes is not None:
            raw = _restricted(raw, self.classes)
        return _pooled(raw, self.plugin_name) if self.pool_test else raw

    @abstractmethod
    def load(self, root: Path) -> RawData:
        """Read the data set.

        Args:
            root: The data root, see `data_root`.

        Raises:
            DataError: Files are missing or unreadable; says which and where they come from.
        """


def _restricted(raw: RawData, classes: tuple[int, ...]) -> RawData:
    """Return the examples of some classes, class classes[i] as class i."""
    unknown = [number for number in classes if number >= raw.num_classes]
    if unknown:
        raise DataError(
            f"data.classes: the data set has the classes 0 to {raw.num_classes - 1}, got "
            f"{', '.join(map(str, unknown))}; choose among those"
        )
    renumbered = torch.full((raw.num_classes,), -1)
    renumbered[list(classes)] = torch.arange(len(classes))

    def kept(split: Split) -> tuple[Split, Tensor]:
        labels = renumbered[split.y]
        rows = torch.nonzero(labels >= 0).flatten()
        return replace(split[rows], y=labels[rows]), rows

    train, rows = kept(raw.train)
    without = [str(number) for place, number in enumerate(classes) if not bool((train.y == place).any())]
    if without:
        raise DataError(
            f"data.classes: the data set has no train example of class {', '.join(without)}; leave it out"
        )
    return replace(
        raw,
        train=train,
        test=None if raw.test is None else kept(raw.test)[0],
        num_classes=len(classes),
        class_names=tuple(raw.class_names[number] for number in classes),
        owners=None if raw.owners is None else raw.owners[rows.numpy()],
    )


def _pooled(raw: RawData, name: str) -> RawData:
    """Return train and official test examples as train examples, in this order."""
    if raw.test is None:
        raise DataError(f"data.pool_test: {name} has no official test set to divide; leave it out")
    if raw.owners is not None:
        raise DataError(f"data.pool_test: nobody owns the test examples of {name}; leave it out")
    pairs = [(getattr(raw.train, key), getattr(raw.test, key)) for key in ("x", "y", "groups")]
    x, y, groups = (None if a is None or b is None else torch.cat([a, b]) for a, b in pairs)
    assert x is not None, "every split has inputs"
    assert y is not None, "every split has classes"
    return replace(raw, train=Split(x, y, groups), test=None)


def data_root() -> Path:
    """Return the folder data sets are read from and downloaded to: FEDSIM_DATA, else a cache in the home."""
    return Path(os.environ.get("FEDSIM_DATA") or Path.home() / ".cache" / "fedsim").expanduser()
