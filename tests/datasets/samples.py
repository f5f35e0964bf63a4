"""A small sample of every data set, written in the format of the real files."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image

from fedsim.datasets import heart

OPTIONS: dict[str, dict[str, Any]] = {
    "imagefolder": {"path": "pictures"},
    "shakespeare": {"length": 8, "stride": 2, "min_examples": 2},
} | {name: {"download": False} for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")}

# Published mean and standard deviation of each channel.
CHANNELS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def bytes_of(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array in which every channel (leading axis but one) runs through all bytes equally often."""
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape).astype(np.uint8)


def write_idx(folder: Path, prefix: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Write the IDX format of MNIST: big-endian magic number, sizes, bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape)
        (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_mnist(root: Path, patch: pytest.MonkeyPatch, name: str = "MNIST") -> None:
    for prefix, count in (("train", 64), ("t10k", 32)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(root / name / "raw", prefix, bytes_of((count, 28, 28)), labels)


def write_fashion_mnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    write_mnist(root, patch, "FashionMNIST")


def write_cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    files = [f"data_batch_{number}" for number in range(1, 6)]
    _forget_checksums(patch, torchvision.datasets.CIFAR10, files, ["test_batch"], "batches.meta", "label_names")
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*files, "test_batch"):
        _pickle(folder / name, {"data": bytes_of((10, 3072)), "labels": list(range(10))})
    _pickle(folder / "batches.meta", {"label_names": [f"class {number}" for number in range(10)]})


def write_cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    _forget_checksums(patch, torchvision.datasets.CIFAR100, ["train"], ["test"], "meta", "fine_label_names")
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        labels = {"fine_labels": list(range(100)), "coarse_labels": [0] * 100}
        _pickle(folder / name, {"data": bytes_of((100, 3072)), **labels})
    _pickle(folder / "meta", {"fine_label_names": [f"class {number}" for number in range(100)]})


def write_images(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = root / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.full((6, 4, 3), shade + number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def write_heart(root: Path, patch: pytest.MonkeyPatch) -> None:
    (root / heart._FILE).write_text(
        "id,age,sex,dataset,cp,trestbps,chol,fbs,restecg,thalch,exang,oldpeak,slope,ca,thal,num\n"
        "1,63,Male,Cleveland,typical angina,145,233,TRUE,lv hypertrophy,150,FALSE,2.3,downsloping,"
        "0,fixed defect,0\n"
        "2,41,Female,Hungary,non-anginal,0,0,,normal,,,,,,,3\n"
    )


def write_shakespeare(root: Path, patch: pytest.MonkeyPatch) -> None:
    (root / "shakespeare.txt").write_text(
        "ROMEO:\nBut soft, what light\nthrough yonder window\n\n"
        "JULIET:\nO Romeo, Romeo, wherefore art thou\n\n"
        "ROMEO:\nShall I hear more?\n\nNURSE:\nHo!\n"
    )


def write_nothing(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Shipped with a library."""


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "digits": write_nothing,
    "fashion_mnist": write_fashion_mnist,
    "heart": write_heart,
    "imagefolder": write_images,
    "mnist": write_mnist,
    "shakespeare": write_shakespeare,
}


def _pickle(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content))


def _forget_checksums(
    patch: pytest.MonkeyPatch, kind: type, train: list[str], test: list[str], meta: str, key: str
) -> None:
    """Let torchvision accept a sample: the checksums it knows are those of the whole data set."""
    patch.setattr(kind, "train_list", [[name, None] for name in train])
    patch.setattr(kind, "test_list", [[name, None] for name in test])
    patch.setattr(kind, "meta", {"filename": meta, "key": key, "md5": None})
