"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels (Krizhevsky, 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fedsim.datasets import Dataset, RawData
from fedsim.datasets._torchvision import Source, load

_SOURCE = Source(
    name="CIFAR10",
    folder="cifar-10-batches-py",
    files=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    origin="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


@final
class Cifar10(Dataset):
    """50,000 train and 10,000 test images of shape (3, 32, 32), 10 classes.

    Attributes:
        download: Fetch the files when they are missing.
    """

    download: bool = True

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        return load(_SOURCE, root, self.download)
