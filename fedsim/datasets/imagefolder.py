"""Any folder of images with one folder per class."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import PositiveInt

from fedsim.datasets import Dataset, RawData, Split, data_root
from fedsim.datasets._images import channel_statistics, standardise
from fedsim.errors import DataError

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_CACHE = "decoded"
_BLOCK = 256  # files one thread decodes before it asks for more


@dataclass(frozen=True)
class _Listing:
    """The image files of one split, in a fixed order.

    Attributes:
        folder: Folder of the class folders.
        files: Paths relative to the folder, sorted by class and name.
        labels: Class of each file, [N] int64.
        digest: Changes with any file's name, size or time of change.
    """

    folder: Path
    files: list[str]
    labels: NDArray[np.int64]
    digest: str


@final
class ImageFolder(Dataset):
    """Images in PATH/train/CLASS/ and PATH/test/CLASS/, or in PATH/CLASS/ without an official test set.

    Pixels are standardised with the mean and standard deviation of the train images. The decoded pixels are
    kept in a folder "decoded" under the data root (or under the default data root where that cannot be
    written), because decoding tens of thousands of files takes long.

    Attributes:
        path: Folder of the images, relative to the data root.
        image_size: Side in pixels: the shorter side is scaled to it and the centre is cut out. None takes
            the images as they are, and they must all have one size.
        grayscale: One channel instead of three.
    """

    path: str = "cifar10"
    image_size: PositiveInt | None = None
    grayscale: bool = False

    def load(self, root: Path) -> RawData:
        """Read the data set; see `Dataset.load`."""
        folder = root / self.path
        official = _has_folders(folder / "train")
        train_folder = folder / "train" if official else folder
        test_folder = folder / "test" if official and _has_folders(folder / "test") else None
        class_names = _class_names(train_folder)
        train_list = _listing(train_folder, class_names)
        train_pixels = self._pixels(train_list, root)
        mean, std = channel_statistics(train_pixels)
        train = Split(standardise(torch.from_numpy(train_pixels), mean, std), torch.from_numpy(train_list.labels))
        test = None
        if test_folder is not None:
            test_list = _listing(test_folder, class_names)
            test_pixels = self._pixels(test_list, root)
            _check_same_shape(train_list, train_pixels, test_list, test_pixels)
            test = Split(standardise(torch.from_numpy(test_pixels), mean, std), torch.from_numpy(test_list.labels))
        return RawData(train, test, len(class_names), class_names)

    def _pixels(self, listing: _Listing, root: Path) -> NDArray[np.uint8]:
        """Return the decoded images, [N, channels, height, width], from the cache if it has them."""
        key = hashlib.sha256(f"{listing.digest} {self.image_size} {self.grayscale}".encode()).hexdigest()[:16]
        name = f"{Path(self.path).name}-{listing.folder.name}-{key}.npy"
        for place in (root / _CACHE, data_root() / _CACHE):
            cached = _read_cache(place / name, len(listing.files))
            if cached is not None:
                return cached
        pixels = _decode(listing, self.image_size, self.grayscale)
        for place in (root / _CACHE, data_root() / _CACHE):
            if _write_cache(place / name, pixels):
                break
        return pixels


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; put one folder of images per class there, set data.path to "
            "the folder "
            "that has them, or point --data or FEDSIM_DATA to the folder that holds it"
        )
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))
    if len(names) < 2:
        raise DataError(
            f"{folder}: needs one folder of images for each of at least 2 classes, got {len(names)}; "
            "set data.path to the folder that holds the class folders"
        )
    return names


def _listing(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    files, labels = [], []
    digest = hashlib.sha256()
    unknown = set(_class_names(folder)) - set(class_names)
    if unknown:
        raise DataError(
            f"{folder}: class folders {', '.join(sorted(unknown))} are not among the train classes; "
            "give the train and test folders the same classes"
        )
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue  # a test set may lack a class
        with os.scandir(folder / name) as entries:
            images = sorted((e for e in entries if Path(e.name).suffix.lower() in _SUFFIXES), key=lambda e: e.name)
        for entry in images:
            status = entry.stat()
            files.append(f"{name}/{entry.name}")
            labels.append(label)
            digest.update(f"{files[-1]} {status.st_size} {status.st_mtime_ns}\n".encode())
    if not files:
        raise DataError(
            f"{folder}: no images in its class folders; the formats are {', '.join(sorted(_SUFFIXES))}, "
            "put the images there or change data.path"
        )
    return _Listing(folder, files, np.array(labels, dtype=np.int64), digest.hexdigest())


def _decode(listing: _Listing, image_size: int | None, grayscale: bool) -> NDArray[np.uint8]:
    """Decode every file with one thread a core; Pillow lets go of the interpreter while it decodes."""
    first = _decode_one(listing, 0, image_size, grayscale)
    pixels = np.empty((len(listing.files), *first.shape), dtype=np.uint8)

    def fill(start: int) -> None:
        for row in range(start, min(start + _BLOCK, len(listing.files))):
            image = _decode_one(listing, row, image_size, grayscale)
            if image.shape != first.shape:
                raise DataError(
                    f"{listing.folder / listing.files[row]}: all images must have one size, got "
                    f"{_size(image)} where "
                    f"{listing.files[0]} has {_size(first)}; set data.image_size"
                )
            pixels[row] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Read in order, so that of several bad files it is always the first that is named.
        for _ in pool.map(fill, range(0, len(listing.files), _BLOCK)):
            pass
    return pixels


def _decode_one(listing: _Listing, row: int, image_size: int | None, grayscale: bool) -> NDArray[np.uint8]:
    path = listing.folder / listing.files[row]
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if grayscale else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if grayscale else array.transpose(2, 0, 1)


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[2]}x{image.shape[1]} pixels"


def _check_same_shape(
    train_list: _Listing, train: NDArray[np.uint8], test_list: _Listing, test: NDArray[np.uint8]
) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{test_list.folder / test_list.files[0]}: test images must have the size of the train "
            "images, got "
            f"{_size(test[0])} where {train_list.files[0]} has {_size(train[0])}; set data.image_size"
        )


def _read_cache(path: Path, num_images: int) -> NDArray[np.uint8] | None:
    try:
        pixels = np.load(path)
    except (OSError, ValueError, EOFError):
        return None  # absent, or cut short: decode again
    whole = pixels.dtype == np.uint8 and pixels.ndim == 4 and len(pixels) == num_images
    return pixels if whole else None


def _write_cache(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Write whole or not at all, whoever else is writing the same file."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            np.save(partial, pixels)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError:
        return False  # a read-only or full disk costs time at the next run, nothing else
    return True
