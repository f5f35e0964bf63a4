"""A small convolutional network in the manner of LeNet, for 28 x 28 and 32 x 32 images."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from fedsim.models import Model, Outputs
from fedsim.models._check import require_image


@final
class Cnn(Model):
    """Two convolutions and a dense layer of 128.

    The convolutions are 5 x 5 with 16 and 32 channels, without padding, each followed by ReLU and 2 x 2
    max-pooling, so a 28 x 28 image comes to 512 numbers.
    """

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        channels, height, width = require_image("cnn", input_shape, min_side=16)
        return _Network(channels, 32 * _pooled(height) * _pooled(width), num_classes)


def _pooled(side: int) -> int:
    """Return the side of the map after both convolutions and poolings."""
    return ((side - 4) // 2 - 4) // 2


class _Network(nn.Module):
    def __init__(self, channels: int, num_flat: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(num_flat, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)
