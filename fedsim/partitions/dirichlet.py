"""Label skew with one dial: each class is divided in proportions drawn from a Dirichlet law."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from fedsim.errors import DataError
from fedsim.partitions import Partition
from fedsim.partitions._flower import check_num_clients, divide, numpy_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import DirichletPartitioner

# flwr-datasets draws 11 times before it gives up; this many seeds make 44 draws, a few seconds at most.
_ATTEMPTS = 4


@final
class Dirichlet(Partition):
    """Divides the examples of each class with proportions drawn from Dirichlet(alpha); all examples are used.

    Yurochkin et al., ICML 2019, https://arxiv.org/abs/1905.12022.

    Attributes:
        num_clients: Number of clients K.
        alpha: Concentration: 0.1 gives a client few classes, 100 is nearly IID.
        min_size: Fewest examples a client may have; the draw is repeated until it holds, a bounded number of
            times.
        self_balancing: Give a client that has more than the average no more examples.
    """

    num_clients: PositiveInt
    alpha: PositiveFloat = 0.5
    min_size: PositiveInt = 10
    self_balancing: bool = False

    def assign(
        self, labels: NDArray[np.int64], owners: NDArray[np.str_] | None, seed: int
    ) -> tuple[list[NDArray[np.int64]], tuple[str, ...] | None]:
        """Divide the examples; see `Partition.assign`."""
        del owners  # the skew is drawn
        check_num_clients(self.num_clients, len(labels))
        if self.num_clients * self.min_size > len(labels):
            raise DataError(
                f"partition.min_size: {self.num_clients} clients of at least {self.min_size} need "
                f"{self.num_clients * self.min_size} examples, got {len(labels)}; lower it or "
                "partition.num_clients"
            )
        for attempt in range(_ATTEMPTS):
            try:
                return divide(self._partitioner(self.min_size, seed, attempt), labels, seed), None
            except ValueError:
                continue  # no draw of this seed gave every client min_size examples
        raise DataError(self._refusal(labels, seed))

    def _partitioner(self, min_size: int, seed: int, attempt: int) -> DirichletPartitioner:
        from flwr_datasets.partitioner import DirichletPartitioner

        return DirichletPartitioner(
            num_partitions=self.num_clients,
            partition_by="label",
            alpha=self.alpha,
            min_partition_size=min_size,
            self_balancing=self.self_balancing,
            shuffle=False,
            seed=numpy_seed(seed, "dirichlet", attempt),
        )

    def _refusal(self, labels: NDArray[np.int64], seed: int) -> str:
        """Say which clients were too small, in a first draw made again without the bound."""
        from fedsim.partitions._rows import Rows

        first = self._partitioner(0, seed, 0)
        first.dataset = Rows(labels, np.arange(len(labels)))
        sizes = [len(first.load_partition(client)) for client in range(self.num_clients)]
        small = [f"client {client} got {size}" for client, size in enumerate(sizes) if size < self.min_size]
        more = f" and {len(small) - 5} more" if len(small) > 5 else ""
        return (
            f"partition.alpha: no draw with alpha {self.alpha} gave each of {self.num_clients} clients "
            "min_size "
            f"{self.min_size} of {len(labels)} examples (in the first draw "
            f"{', '.join(small[:5])}{more}); raise "
            "partition.alpha, lower partition.min_size or partition.num_clients, or set "
            "partition.self_balancing"
        )
