"""What the image data sets share: from bytes to standardised floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 4096  # images counted at once: bounds the memory of a histogram over a large data set


def standardise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale bytes to [0, 1], then to mean 0 and standard deviation 1 per channel.

    Args:
        pixels: Images, [N, channels, height, width] uint8.
        mean: Mean of each channel on the scale [0, 1].
        std: Standard deviation of each channel on the same scale.

    Returns:
        The images, [N, channels, height, width] float32.
    """
    shape = (1, len(mean), 1, 1)
    centre = torch.tensor(mean, dtype=torch.float32).view(shape) * 255.0
    spread = torch.tensor(std, dtype=torch.float32).view(shape) * 255.0
    # In place after the one conversion: a data set this size should not exist three times.
    return pixels.to(torch.float32).sub_(centre).div_(spread)


def channel_statistics(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel on the scale [0, 1].

    They come from the exact histogram of the 256 values, so no float copy of the images is made.

    Args:
        pixels: Images, [N, channels, height, width] uint8.
    """
    values = np.arange(256) / 255.0
    means, stds = [], []
    for channel in range(pixels.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(pixels), _BLOCK):
            counts += np.bincount(pixels[start : start + _BLOCK, channel].ravel(), minlength=256)
        weights = counts / counts.sum()
        mean = float(weights @ values)
        variance = float(weights @ (values - mean) ** 2)
        means.append(mean)
        stds.append(variance**0.5 or 1.0)  # a constant channel becomes 0, not NaN
    return means, stds
