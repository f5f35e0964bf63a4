"""The glue to flwr-datasets: labels in, example numbers of each client out."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import seeds
from fedsim.errors import DataError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

LABEL = "label"


def divide(partitioner: Partitioner, labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """Return the example numbers that a partitioner gives each client, ascending.

    The rows are shuffled first: several partitioners cut each class into runs in the order of the file, and
    the IID one does not shuffle at all.

    Args:
        partitioner: A fresh partitioner from flwr-datasets that divides by the column "label".
        labels: What to divide by, [N].
        seed: Seed of the shuffling.

    Raises:
        ValueError: The partitioner refuses.
        DataError: It gave an example to two clients or to none of them anything.
    """
    # Imported here: it brings in `datasets`, which takes seconds.
    from fedsim.partitions._rows import INDEX, Rows

    order = torch.randperm(len(labels), generator=seeds.generator(seed, "partition", "rows")).numpy()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter(
            "ignore"
        )  # advice on retries and unused classes, which the schemes document or report
        partitioner.dataset = Rows(labels[order], order)
        parts = [np.sort(partitioner.load_partition(client)[INDEX]) for client in range(partitioner.num_partitions)]
    _check(parts)
    return parts


def numpy_seed(seed: int, *labels: object) -> int:
    """Return the seed of a partitioner's own NumPy generator."""
    return seeds.derive(seed, "partition", *labels) % 2**32


def check_num_clients(num_clients: int, num_examples: int) -> None:
    """Refuse more clients than examples.

    Raises:
        DataError: At least one client would be empty; it is named.
    """
    if num_clients > num_examples:
        raise DataError(
            f"partition.num_clients: {num_clients} clients cannot share {num_examples} examples, client "
            f"{num_examples} would be empty; set it to {num_examples} or less, or let clients share examples: "
            "partition.name=resampled"
        )


def _check(parts: list[NDArray[np.int64]]) -> None:
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty:
        raise DataError(
            f"partition: clients {', '.join(map(str, empty[:10]))} would be empty; lower partition.num_clients"
        )
    owned = np.concatenate(parts)
    if len(np.unique(owned)) != len(owned):
        raise DataError("partition: flwr-datasets gave an example to two clients; choose another scheme or version")
