"""Multilayer perceptron: the "2NN" of the FedAvg paper by default."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, final

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from fedsim.models import Model, Outputs
from fedsim.models._check import require_floats


@final
class Mlp(Model):
    """Dense layers with ReLU on the flattened input (McMahan et al., https://arxiv.org/abs/1602.05629).

    Attributes:
        hidden: Width of each hidden layer.
    """

    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (200, 200)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        return _Network((math.prod(input_shape), *self.hidden), num_classes)


class _Network(nn.Module):
    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Outputs:
        require_floats("mlp", x)
        features = self.body(x)
        return Outputs(self.head(features), features)
