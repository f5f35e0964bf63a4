"""Multinomial logistic regression: convex, so theory can be checked on it."""

from __future__ import annotations

import math
from typing import Literal, final

from torch import Tensor, nn

from fedsim.models import Model, Outputs
from fedsim.models._check import require_floats


@final
class Logistic(Model):
    """One linear layer on the flattened input; the features are the input itself.

    Attributes:
        init: "random": PyTorch's initialisation of a linear layer. "zeros": every client starts at the same loss,
            log C, as is usual for convex problems.
    """

    init: Literal["random", "zeros"] = "random"

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        network = _Network(math.prod(input_shape), num_classes)
        if self.init == "zeros":
            nn.init.zeros_(network.head.weight)
            nn.init.zeros_(network.head.bias)
        return network


class _Network(nn.Module):
    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_inputs, num_classes)

    def forward(self, x: Tensor) -> Outputs:
        require_floats("logistic", x)
        features = x.flatten(1)
        return Outputs(self.head(features), features)
