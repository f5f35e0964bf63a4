"""The character model of LEAF's Shakespeare task (Caldas et al., https://arxiv.org/abs/1812.01097)."""

from __future__ import annotations

from typing import final

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from fedsim.errors import ScenarioError
from fedsim.models import Model, Outputs
from fedsim.models._check import misfit


@final
class CharLSTM(Model):
    """Embedding, LSTM layers, and a linear layer on the last hidden state; the classes are the characters.

    Attributes:
        embedding: Size of a character's embedding.
        hidden: Size of the hidden state.
        layers: Number of LSTM layers.
    """

    embedding: PositiveInt = 8
    hidden: PositiveInt = 256
    layers: PositiveInt = 2

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the network; see `Model.build`."""
        if len(input_shape) != 1:
            raise misfit(
                "char_lstm expects texts (length,) of character codes", input_shape, "use a model for images"
            )
        return _Network(num_classes, self.embedding, self.hidden, self.layers)


class _Network(nn.Module):
    def __init__(self, num_characters: int, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, num_characters)

    def forward(self, x: Tensor) -> Outputs:
        if x.dtype != torch.uint8:  # the shape alone does not tell a text from a vector
            raise ScenarioError(
                "model.name",
                [f"char_lstm expects uint8 character codes, the data set gives {x.dtype}; use mlp or logistic"],
            )
        states, _ = self.lstm(self.embedding(x.long()))
        features = states[:, -1]
        return Outputs(self.head(features), features)
