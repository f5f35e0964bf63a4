"""Two convolutions with pooling, then dense layers: the family of `cnn` and `cnn_wide`."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from fedsim.models import Outputs
from fedsim.models._check import require_image


class LeNet(nn.Module):
    """Convolutions of 5 x 5 without padding, each followed by ReLU and 2 x 2 max-pooling, and dense layers.

    Args:
        name: The model's name in a scenario, for messages.
        input_shape: (channels, height, width).
        maps: Channels of both convolutions.
        dense: Sizes of the hidden dense layers.
        num_classes: Number of classes C.
        dropout: Share of the outputs of each hidden dense layer that training sets to 0; () for none.

    Raises:
        ScenarioError: The data are no images of at least 16 x 16 pixels.
    """

    def __init__(
        self,
        name: str,
        input_shape: tuple[int, ...],
        maps: tuple[int, int],
        dense: tuple[int, ...],
        num_classes: int,
        dropout: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        channels, height, width = require_image(name, input_shape, min_side=16)
        sizes = (maps[1] * _pooled(height) * _pooled(width), *dense)
        convolutions = [
            layer
            for before, after in pairwise((channels, *maps))
            for layer in (nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2))
        ]
        shares = dropout or (0.0,) * len(dense)
        hidden = [
            layer
            for (before, after), share in zip(pairwise(sizes), shares, strict=True)
            # No layer where nothing is dropped: parameters keep the names they have without the option.
            for layer in (nn.Linear(before, after), *([nn.Dropout(share)] if share else []), nn.ReLU())
        ]
        self.body = nn.Sequential(*convolutions, nn.Flatten(), *hidden)
        self.head = nn.Linear(sizes[-1], num_classes)

    def forward(self, x: Tensor) -> Outputs:
        """Return logits and the input of the last layer."""
        features = self.body(x)
        return Outputs(self.head(features), features)


def _pooled(side: int) -> int:
    """Return the side of the map after both convolutions and poolings."""
    return ((side - 4) // 2 - 4) // 2
