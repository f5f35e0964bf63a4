"""Partitions: who owns which example. One scheme per file, each a thin layer over flwr-datasets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from fedsim.plugins import Plugin


class Partition(Plugin, ABC):
    """Divides examples among clients.

    Attributes:
        test_fraction: Share of each client's examples kept as its test shard, the same share of each of its
            classes.
        seed: Seed of the division; None takes the run's seed.
    """

    noun: ClassVar[str] = "partition"

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
