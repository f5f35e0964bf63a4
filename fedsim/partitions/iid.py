"""Every client's examples follow the same law."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedsim.partitions import Partition
from fedsim.partitions._flower import check_num_clients, divide


@final
class Iid(Partition):
    """Shuffles the examples and deals them out in equal shares, all of them.

    Attributes:
        num_clients: Number of clients K.
    """

    num_clients: PositiveInt

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del owners  # equal for all
        from flwr_datasets.partitioner import IidPartitioner

        check_num_clients(self.num_clients, len(labels))
        return divide(IidPartitioner(self.num_clients), labels, seed), None
