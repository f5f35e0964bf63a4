"""Label skew at its plainest: each client has exactly so many classes."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedsim import seeds
from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._flower import check_num_clients, divide, numpy_seed


@final
class Pathological(Partition):
    """Gives each client so many classes and divides each class evenly among the clients that have it.

    Li et al., ICDE 2022, https://arxiv.org/abs/2102.02079. With "drawn" classes, client i has class i mod C and its
    other classes are drawn; so every example is used when there are at least as many clients as classes. With fewer
    clients, classes nobody drew are left out.

    Attributes:
        num_clients: Number of clients K.
        classes_per_client: Classes of each client, k.
        assignment: Which classes those are. "drawn": see above. "blocks": the classes in groups of k, each group
            for the same number of clients, as in FedLF's code: the first clients have classes 0 to k - 1, the
            next k to 2k - 1, and every class is divided among K k / C clients. k must divide C, and C / k K.
    """

    num_clients: PositiveInt
    classes_per_client: PositiveInt = 2
    assignment: Literal["drawn", "blocks"] = "drawn"

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del owners  # the skew is drawn
        check_num_clients(self.num_clients, len(labels))
        num_classes = len(np.unique(labels))
        if self.classes_per_client > num_classes:
            raise DataError(
                f"partition.classes_per_client: client 0 cannot have {self.classes_per_client} classes, "
                "the data set "
                f"has {num_classes}; set it to {num_classes} or less"
            )
        if self.assignment == "blocks":
            return self._blocks(labels, seed), None
        from flwr_datasets.partitioner import PathologicalPartitioner

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

    def _blocks(self, labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
        """Return the example numbers of each client, ascending: groups of classes for groups of clients."""
        classes, wanted = np.unique(labels), self.classes_per_client
        num_groups = len(classes) // wanted
        if len(classes) % wanted or self.num_clients % num_groups:
            raise DataError(
                f'partition.assignment: "blocks" needs classes_per_client to divide the {len(classes)} classes and '
                f"the number of groups to divide num_clients, got {wanted} and {self.num_clients}; change one of "
                'them, or take "drawn"'
            )
        sharing = self.num_clients // num_groups
        order = torch.randperm(len(labels), generator=seeds.generator(seed, "partition", "blocks")).numpy()
        shuffled = labels[order]
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(self.num_clients)]
        for place, label in enumerate(classes):
            first = place // wanted * sharing
            rows = order[shuffled == label]
            if len(rows) < sharing:
                raise DataError(
                    f"partition.num_clients: {sharing} clients share class {label} of {len(rows)} examples; "
                    "lower partition.num_clients or classes_per_client"
                )
            for client, share in enumerate(np.array_split(rows, sharing), start=first):
                parts[client].append(share)
        return [np.sort(np.concatenate(part)) for part in parts]
