"""The partition of the FedAvg paper: sort by class, cut into shards, deal a few to each client."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._flower import divide, numpy_seed


@final
class Shards(Partition):
    """Sorts the examples by class, cuts them into equal shards and deals each client `shards_per_client`.

    McMahan et al., AISTATS 2017, https://arxiv.org/abs/1602.05629. All clients have the same number of
    examples; the N mod (num_clients * shards_per_client) examples that fill no shard, and any further whole
    shards, are left out.

    Attributes:
        num_clients: Number of clients K.
        shards_per_client: Shards each client gets; about the number of its classes.
    """

    num_clients: PositiveInt
    shards_per_client: PositiveInt = 2

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del owners  # the skew is drawn
        from flwr_datasets.partitioner import ShardPartitioner

        num_shards = self.num_clients * self.shards_per_client
        if num_shards > len(labels):
            raise DataError(
                f"partition.num_clients: {self.num_clients} clients of {self.shards_per_client} shards "
                f"need {num_shards} "
                f"examples, got {len(labels)}, client {len(labels) // self.shards_per_client} could not "
                "be served; "
                f"lower it to {len(labels) // self.shards_per_client} or lower partition.shards_per_client"
            )
        partitioner = ShardPartitioner(
            num_partitions=self.num_clients,
            partition_by="label",
            num_shards_per_partition=self.shards_per_client,
            shuffle=False,
            seed=numpy_seed(seed, "shards"),
        )
        return divide(partitioner, labels, seed), None
