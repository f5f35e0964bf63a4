"""The wider convolutional network that federated papers use on CIFAR (e.g. FedDyn, https://arxiv.org/abs/2111.04263)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from fedsim.models import Model, Outputs
from fedsim.models._check import require_image


@final
class CnnWide(Model):
    """Two convolutions and dense layers of 384 and 192.

    The convolutions are 5 x 5 with 64 channels, without padding, each followed by ReLU and 2 x 2 max-pooling.
    """

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        channels, height, width = require_image("cnn_wide", input_shape, min_side=16)
        return _Network(channels, 64 * _pooled(height) * _pooled(width), num_classes)


def _pooled(side: int) -> int:
    """Return the side of the map after both convolutions and poolings."""
    return ((side - 4) // 2 - 4) // 2


class _Network(nn.Module):
    def __init__(self, channels: int, num_flat: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(num_flat, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
        )
        self.head = nn.Linear(192, num_classes)

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)
