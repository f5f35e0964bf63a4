"""CIFAR-100: 60,000 colour photographs of 32 x 32 pixels in 100 classes (Krizhevsky, 2009)."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fedsim.datasets import Dataset, RawData
from fedsim.datasets._torchvision import Source, load

_SOURCE = Source(
    name="CIFAR100",
    folder="cifar-100-python",
    files=("train", "test", "meta"),
    origin="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)


@final
class Cifar100(Dataset):
    """50,000 train and 10,000 test images of shape (3, 32, 32), 100 fine classes.

    Attributes:
        download: Fetch the files when they are missing.
    """

    download: bool = True

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        return load(_SOURCE, root, self.download)
