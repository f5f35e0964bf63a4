"""Model families: one file each. A model maps inputs to logits and penultimate features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from fedsim.plugins import Plugin


class Outputs(NamedTuple):
    """What a model's forward returns.

    Attributes:
        logits: [B, C].
        features: Input of the last linear layer, [B, F].
    """

    logits: Tensor
    features: Tensor


class Model(Plugin, ABC):
    """Builds one network for one kind of data; `forward` of the network returns `Outputs`."""

    noun: ClassVar[str] = "model"

    @abstractmethod
    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network, initialised from torch's global generator.

        Args:
            input_shape: Shape of one example: (channels, height, width), (F,) or (length,) of characters.
            num_classes: Number of classes C.

        Raises:
            ScenarioError: The model does not fit data of this shape.
        """
