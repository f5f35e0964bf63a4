"""Partitions: who owns which example. One scheme per file; those that divide are thin layers over flwr-datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from fedsim.plugins import Plugin


@dataclass(frozen=True)
class Lists:
    """A list of example numbers for each of K clients, in two arrays.

    Attributes:
        rows: The lists one after the other.
        offsets: Client i has rows[offsets[i]:offsets[i + 1]], [K + 1] int64.
    """

    rows: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[NDArray[np.int64]]) -> Lists:
        """Return the same lists, given as an array each."""
        return cls(np.concatenate(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Length of each list, [K]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> NDArray[Any]:
        if not 0 <= client < len(self):
            raise IndexError(f"clients are 0 to {len(self) - 1}, got {client}")
        return self.rows[self.offsets[client] : self.offsets[client + 1]]


class Partition(Plugin, ABC):
    """Divides examples among clients.

    Attributes:
        overlaps: Whether two clients may own the same example.
        test_fraction: Share of each client's examples kept as its test shard, the same share of each of its
            classes.
        seed: Seed of the division; None takes the run's seed.
    """

    noun: ClassVar[str] = "partition"
    overlaps: ClassVar[bool] = False

    test_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    seed: NonNegativeInt | None = None

    @abstractmethod
    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Return the example numbers of each client, and the clients' names where they have any.

        Args:
            labels: Class of each example, [N].
            owners: Natural owner of each example, [N], or None.
            seed: Seed of the division.

        Raises:
            DataError: The division asked for is impossible; says what to change.
        """

    def sides(self, labels: NDArray[np.int64], seed: int) -> tuple[Lists, Lists] | None:
        """Return each client's train and test examples where the scheme says which are which.

        Args:
            labels: Class of each example, [N].
            seed: Seed of the division.

        Returns:
            Ascending example numbers, or None to have what `assign` gives a client divided by `test_fraction`.

        Raises:
            DataError: The division asked for is impossible; says what to change.
        """
        del labels, seed
        return None
