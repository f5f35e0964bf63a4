"""The wider convolutional network that federated papers use on CIFAR (e.g. FedDyn, https://arxiv.org/abs/2111.04263)."""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field
from torch import nn

from fedsim.models import Model
from fedsim.models._lenet import LeNet

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


@final
class CnnWide(Model):
    """Two convolutions and dense layers of 384 and 192.

    The convolutions are 5 x 5 with 64 channels, without padding, each followed by ReLU and 2 x 2 max-pooling.

    Attributes:
        dropout: Share of the outputs of the first and the second dense layer that training sets to 0; 0.2 and 0.5
            in the code of FedMDFG and FedLF.
    """

    dropout: tuple[Share, Share] = (0.0, 0.0)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        return LeNet("cnn_wide", input_shape, (64, 64), (384, 192), num_classes, self.dropout)
