from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedsim.datasets import imagefolder
from fedsim.datasets._images import channel_statistics
from fedsim.datasets.imagefolder import ImageFolder
from fedsim.errors import DataError
from tests.datasets import samples


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples.write_images(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "elsewhere"))
    return tmp_path


def test_official_test_set_is_scaled_like_the_train_set(root: Path) -> None:
    raw = ImageFolder(path="pictures").load(root)
    assert raw.class_names == ("dark", "light")
    assert raw.train.x.shape == (6, 3, 6, 4)
    assert raw.train.y.tolist() == [0, 0, 0, 1, 1, 1]
    shades = np.array([40, 41, 42, 200, 201, 202]) / 255
    expected = (shades - shades.mean()) / shades.std()
    np.testing.assert_allclose(raw.train.x[:, 1, 5, 3], expected, rtol=1e-5)
    assert raw.test is not None
    torch.testing.assert_close(raw.test.x, raw.train.x)


def test_without_subfolders_there_is_no_official_test_set(root: Path) -> None:
    raw = ImageFolder(path="pictures/train").load(root)
    assert raw.test is None
    assert len(raw.train) == 6


def test_options_change_the_shape(root: Path) -> None:
    raw = ImageFolder(path="pictures", image_size=5, grayscale=True).load(root)
    assert raw.train.x.shape == (6, 1, 5, 5)


def test_resize_keeps_the_centre(root: Path) -> None:
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(root / "pictures/train/dark/0.png")
    raw = ImageFolder(path="pictures/train", image_size=4).load(root)
    assert (raw.train.x[0] == raw.train.x.max()).all()


def test_the_second_time_nothing_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageFolder(path="pictures").load(root)
    assert len(list((root / "decoded").iterdir())) == 2
    monkeypatch.setattr(imagefolder, "_decode", None)
    second = ImageFolder(path="pictures").load(root)
    torch.testing.assert_close(first.train.x, second.train.x, rtol=0, atol=0)


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    before = ImageFolder(path="pictures").load(root)
    Image.fromarray(np.full((6, 4, 3), 255, dtype=np.uint8)).save(
        root / "pictures/train/dark/0.png", optimize=False
    )
    after = ImageFolder(path="pictures").load(root)
    assert not torch.equal(before.train.x, after.train.x)


@pytest.mark.parametrize("content", [b"", b"not an array", None])
def test_a_broken_cache_is_replaced(root: Path, content: bytes | None) -> None:
    expected = ImageFolder(path="pictures").load(root)
    for file in (root / "decoded").iterdir():
        file.write_bytes(file.read_bytes()[:-1] if content is None else content)
    torch.testing.assert_close(ImageFolder(path="pictures").load(root).train.x, expected.train.x)


def test_a_root_that_cannot_be_written_is_cached_elsewhere(root: Path, tmp_path: Path) -> None:
    (root / "decoded").write_text("a file where the folder would be")
    ImageFolder(path="pictures").load(root)
    assert len(list((tmp_path / "elsewhere" / "decoded").iterdir())) == 2


def test_the_image_of_another_size_is_named(root: Path) -> None:
    Image.new("RGB", (7, 6)).save(root / "pictures/train/light/1.png")
    with pytest.raises(DataError, match=r"light/1\.png: .*got 7x6 pixels where .* has 4x6 .*image_size"):
        ImageFolder(path="pictures").load(root)


def test_test_images_of_another_size_are_refused(root: Path) -> None:
    for file in (root / "pictures/test").glob("*/*.png"):
        Image.new("RGB", (8, 8)).save(file)
    with pytest.raises(DataError, match="test images must have the size of the train images, got 8x8"):
        ImageFolder(path="pictures").load(root)


def test_a_file_that_is_no_image_is_named(root: Path) -> None:
    (root / "pictures/train/dark/2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dark/2\.png: cannot be read as an image"):
        ImageFolder(path="pictures").load(root)


def test_test_classes_unknown_in_training_are_refused(root: Path) -> None:
    (root / "pictures/test/unseen").mkdir()
    with pytest.raises(DataError, match="unseen are not among the train classes"):
        ImageFolder(path="pictures").load(root)


def test_class_folders_without_images_are_refused(root: Path) -> None:
    for name in ("a", "b"):
        (root / "empty" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        ImageFolder(path="empty").load(root)


def test_statistics_of_a_histogram_are_those_of_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 2, 3, 3), dtype=np.uint8)
    mean, std = channel_statistics(pixels)
    np.testing.assert_allclose(mean, (pixels / 255.0).mean((0, 2, 3)))
    np.testing.assert_allclose(std, (pixels / 255.0).std((0, 2, 3)))


def test_real_cifar10(cifar_root: Path) -> None:
    raw = ImageFolder(path="cifar10/test").load(cifar_root)
    assert raw.class_names[:2] == ("airplane", "automobile")
    assert raw.train.x.shape == (120, 3, 32, 32)
    assert torch.bincount(raw.train.y).tolist() == [12] * 10
    assert raw.train.x.mean((0, 2, 3)).abs().max() < 1e-4
