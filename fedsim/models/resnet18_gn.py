"""ResNet-18 with group normalisation, the usual deep network of federated image studies."""

from __future__ import annotations

from functools import partial
from typing import Literal, final

from torch import Tensor, nn

from fedsim.models import Model, Outputs
from fedsim.models._check import require_image

_SMALL = 64  # pixels; below, the ImageNet stem would throw most of the image away


@final
class ResNet18GN(Model):
    """torchvision's ResNet-18 with GroupNorm (He et al. 2016; Hsieh et al. 2020, https://arxiv.org/abs/1910.00189).

    Images up to 64 pixels get a 3 x 3 stem of stride 1 without max-pooling; larger ones the usual stem.

    Attributes:
        groups: Groups of each normalisation; 2 as in Reddi et al., https://arxiv.org/abs/2003.00295.
    """

    groups: Literal[1, 2, 4, 8, 16, 32, 64] = 2

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        channels, height, width = require_image("resnet18_gn", input_shape, min_side=16)
        return _Network(channels, min(height, width) <= _SMALL, self.groups, num_classes)


class _Network(nn.Module):
    def __init__(self, channels: int, small: bool, groups: int, num_classes: int) -> None:
        super().__init__()
        # Imported here: torchvision takes a second that the other models need not wait for.
        from torchvision.models import resnet18

        self.body = resnet18(norm_layer=partial(nn.GroupNorm, groups))
        num_features = self.body.fc.in_features
        if small:
            self.body.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
            self.body.maxpool = nn.Identity()
        elif channels != 3:
            self.body.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.body.fc = nn.Identity()
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)
