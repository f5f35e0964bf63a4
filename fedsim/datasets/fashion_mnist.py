"""Fashion-MNIST: 70,000 articles of clothing, 28 x 28 pixels (Xiao et al., https://arxiv.org/abs/1708.07747)."""

from __future__ import annotations

from pathlib import Path
from typing import final

from fedsim.datasets import Dataset, RawData
from fedsim.datasets._torchvision import Source, load

_SOURCE = Source(
    name="FashionMNIST",
    folder="FashionMNIST/raw",
    files=(
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ),
    origin="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    mean=(0.2860,),
    std=(0.3530,),
)


@final
class FashionMnist(Dataset):
    """60,000 train and 10,000 test images of shape (1, 28, 28), 10 classes.

    Attributes:
        download: Fetch the files when they are missing.
    """

    download: bool = True

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        return load(_SOURCE, root, self.download)
