"""A small convolutional network in the manner of LeNet, for 28 x 28 and 32 x 32 images."""

from __future__ import annotations

from typing import final

from torch import nn

from fedsim.models import Model
from fedsim.models._lenet import LeNet


@final
class Cnn(Model):
    """Two convolutions and a dense layer of 128.

    The convolutions are 5 x 5 with 16 and 32 channels, without padding, each followed by ReLU and 2 x 2
    max-pooling, so a 28 x 28 image comes to 512 numbers.
    """

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        return LeNet("cnn", input_shape, (16, 32), (128,), num_classes)
