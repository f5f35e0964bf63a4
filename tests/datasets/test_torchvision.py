from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from fedsim.datasets.cifar10 import Cifar10
from fedsim.datasets.cifar100 import Cifar100
from fedsim.datasets.fashion_mnist import FashionMnist
from fedsim.datasets.mnist import Mnist
from fedsim.errors import DataError
from tests.datasets import samples


def test_pixels_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_cifar10(tmp_path, monkeypatch)
    raw = Cifar10(download=False).load(tmp_path)
    assert raw.train.x.shape == (50, 3, 32, 32)
    assert raw.test is not None
    assert raw.test.x.shape == (10, 3, 32, 32)
    # A row of the file is 1024 red, then 1024 green, then 1024 blue bytes; byte k of the sample is k mod 256.
    mean, std = samples.CHANNELS["cifar10"]
    for channel, row, column in ((0, 0, 5), (1, 3, 7), (2, 31, 31)):
        byte = (1024 * channel + 32 * row + column) % 256
        expected = (byte / 255 - mean[channel]) / std[channel]
        assert raw.train.x[0, channel, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_cifar100_has_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_cifar100(tmp_path, monkeypatch)
    raw = Cifar100(download=False).load(tmp_path)
    assert raw.class_names[99] == "class 99"
    assert raw.train.y.tolist() == list(range(100))


def test_fashion_mnist_names_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_fashion_mnist(tmp_path, monkeypatch)
    assert FashionMnist(download=False).load(tmp_path).class_names[9] == "Ankle boot"


def test_a_failed_download_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_mnist(tmp_path, monkeypatch)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(DataError) as caught:
        Mnist().load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'MNIST/raw'}: missing t10k-labels-idx1-ubyte (the download failed")
    assert "no route to host" in message
    assert "ossci-datasets" in message
    assert "FEDSIM_DATA" in message


def test_files_that_are_there_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_mnist(tmp_path, monkeypatch)
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", None)
    assert len(Mnist().load(tmp_path).train) == 64


def test_a_file_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_mnist(tmp_path, monkeypatch)
    images = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"are there but cannot be read.*delete that folder"):
        Mnist().load(tmp_path)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        samples.write_cifar10(tmp_path, patch)
    # The true checksums are back, and the sample does not have them.
    with pytest.raises(DataError, match="cannot be read"):
        Cifar10(download=False).load(tmp_path)


def test_real_mnist_has_the_published_statistics(data_root: Path) -> None:
    raw = Mnist(download=False).load(data_root)
    assert (len(raw.train), len(raw.test or ())) == (60_000, 10_000)
    assert raw.train.x.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert raw.train.x.std().item() == pytest.approx(1.0, abs=1e-3)
    assert torch.bincount(raw.train.y).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
