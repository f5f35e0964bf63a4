"""Label skew at its plainest: each client has exactly so many classes."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._flower import check_num_clients, divide, numpy_seed


@final
class Pathological(Partition):
    """Gives each client so many classes and divides each class evenly among the clients that have it.

    Li et al., ICDE 2022, https://arxiv.org/abs/2102.02079. Client i has class i mod C, its other classes are
    drawn; so every example is used when there are at least as many clients as classes. With fewer clients,
    classes nobody drew are left out.

    Attributes:
        num_clients: Number of clients K.
        classes_per_client: Classes of each client.
    """

    num_clients: PositiveInt
    classes_per_client: PositiveInt = 2

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del owners  # the skew is drawn
        from flwr_datasets.partitioner import PathologicalPartitioner

        check_num_clients(self.num_clients, len(labels))
        num_classes = len(np.unique(labels))
        if self.classes_per_client > num_classes:
            raise DataError(
                f"partition.classes_per_client: client 0 cannot have {self.classes_per_client} classes, "
                "the data set "
                f"has {num_classes}; set it to {num_classes} or less"
            )
        partitioner = PathologicalPartitioner(
            num_partitions=self.num_clients,
            partition_by="label",
            num_classes_per_partition=self.classes_per_client,
            class_assignment_mode="first-deterministic",
            shuffle=False,
            seed=numpy_seed(seed, "pathological"),
        )
        try:
            return divide(partitioner, labels, seed), None
        except ValueError as error:
            raise DataError(
                f"partition.num_clients: with {self.num_clients} clients of {self.classes_per_client} "
                "classes more "
                "clients share a class than it has examples; lower partition.num_clients or "
                f"partition.classes_per_client ({error})"
            ) from error
