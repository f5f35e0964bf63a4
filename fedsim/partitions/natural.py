"""The data set's own division: hospitals, speakers, writers."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._flower import divide


@final
class Natural(Partition):
    """One client for each natural owner, named after it; clients are in the order of their names.

    Attributes:
        max_clients: Keep only this many owners, the largest (equal ones by name); None keeps all.
        min_examples: Owners with fewer examples are left out.
    """

    max_clients: PositiveInt | None = None
    min_examples: PositiveInt = 2

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del labels  # who owns what is given
        from flwr_datasets.partitioner import NaturalIdPartitioner

        if owners is None:
            raise DataError(
                "partition.name: the data set has no natural owners; choose iid, dirichlet, shards or pathological"
            )
        names, codes, sizes = np.unique(owners, return_inverse=True, return_counts=True)
        by_size = np.argsort(-sizes, kind="stable")
        large = by_size[sizes[by_size] >= self.min_examples][: self.max_clients]
        if len(large) == 0:
            raise DataError(
                f"partition.min_examples: none of the {len(names)} owners has {self.min_examples} "
                "examples, the "
                f'largest, "{names[by_size[0]]}", has {sizes[by_size[0]]}; lower it to that or less'
            )
        rows = np.flatnonzero(np.isin(codes, large))
        parts = divide(NaturalIdPartitioner(partition_by="label"), codes[rows], seed)
        return [rows[part] for part in parts], tuple(str(name) for name in names[np.sort(large)])
