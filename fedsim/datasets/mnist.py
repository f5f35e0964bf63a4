"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun et al., Proc. IEEE 1998)."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fedsim.datasets import Dataset, RawData
from fedsim.datasets._torchvision import Source, load

_SOURCE = Source(
    name="MNIST",
    folder="MNIST/raw",
    files=(
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ),
    origin="https://ossci-datasets.s3.amazonaws.com/mnist/",
    mean=(0.1307,),
    std=(0.3081,),
    class_names=tuple("0123456789"),
)


@final
class Mnist(Dataset):
    """60,000 train and 10,000 test images of shape (1, 28, 28), 10 classes.

    Attributes:
        download: Fetch the files when they are missing.
    """

    download: bool = True

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        return load(_SOURCE, root, self.download)
