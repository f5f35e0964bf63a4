"""What the torchvision data sets share: finding or downloading the files, and reading them whole."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from fedsim.datasets import RawData, Split
from fedsim.datasets._images import standardise
from fedsim.errors import DataError

# What torchvision raises for files that are absent, cut short or altered, and for a failed download.
_FAILURES = (
    OSError,
    URLError,
    RuntimeError,
    ValueError,
    AssertionError,
    EOFError,
    KeyError,
    TypeError,
    pickle.UnpicklingError,
    struct.error,
)


@dataclass(frozen=True)
class Source:
    """One torchvision data set.

    Attributes:
        name: Class name in torchvision.datasets.
        folder: Folder of the files, relative to the data root.
        files: File names in that folder.
        origin: Where the files come from, for messages.
        mean: Mean of each channel on the scale [0, 1].
        std: Standard deviation of each channel.
        class_names: C names; () takes those of torchvision.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    origin: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()


def load(source: Source, root: Path, download: bool) -> RawData:
    """Read both official splits, downloading them first if they are missing and that is allowed.

    Raises:
        DataError: Files are missing and cannot be downloaded, or are unreadable.
    """
    train, names = _read(source, root, train=True, download=download)
    test, _ = _read(source, root, train=False, download=download)
    class_names = source.class_names or names
    return RawData(train, test, len(class_names), class_names)


def _read(source: Source, root: Path, train: bool, download: bool) -> tuple[Split, tuple[str, ...]]:
    folder = root / source.folder
    missing = [name for name in source.files if not (folder / name).is_file()]
    if missing and not download:
        raise DataError(_missing(source, folder, missing, "download = false"))
    # Imported here: torchvision takes a second that a scenario without it need not wait for.
    import torchvision.datasets

    try:
        loaded = getattr(torchvision.datasets, source.name)(root, train=train, download=bool(missing))
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        still_missing = [name for name in source.files if not (folder / name).is_file()]
        if still_missing:
            raise DataError(_missing(source, folder, still_missing, f"the download failed: {reason}")) from error
        raise DataError(
            f"{folder}: the files of {source.name} are there but cannot be read, got: {reason}; "
            f"delete that folder and fetch it again from {source.origin}"
        ) from error
    pixels = _channels_first(loaded.data)
    labels = torch.as_tensor(loaded.targets).to(torch.int64)
    return Split(standardise(pixels, source.mean, source.std), labels), tuple(loaded.classes)


def _channels_first(data: Any) -> Tensor:
    """Return [N, channels, height, width] of torchvision's [N, H, W] tensor or [N, H, W, 3] array."""
    if isinstance(data, np.ndarray):
        return torch.from_numpy(data).permute(0, 3, 1, 2).contiguous()
    grey: Tensor = data.unsqueeze(1)
    return grey


def _missing(source: Source, folder: Path, missing: list[str], reason: str) -> str:
    return (
        f"{folder}: missing {', '.join(missing)} ({reason}); {source.name} comes from {source.origin}: "
        "put the files in that folder, or point --data or FEDSIM_DATA to the folder "
        f'that holds "{source.folder}"'
    )
