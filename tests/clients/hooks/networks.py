"""Networks that a block of clients can and cannot share, and models that hold some of them."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn

from fedsim.models import Model, Outputs

WIDTH = 6


class Headed(nn.Module):
    """A linear layer behind some body of `WIDTH` features."""

    def __init__(self, body: nn.Module, num_classes: int = 4) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(WIDTH, num_classes)

    def forward(self, x: Tensor) -> Outputs:
        features = self.body(x)
        return Outputs(self.head(features), features)


def dense() -> nn.Linear:
    return nn.Linear(5, WIDTH)


class Scaled(nn.Module):
    """Holds a number that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((WIDTH,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale")


class Filling(nn.Module):
    """Writes into a tensor that is not the clients' own."""

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.zeros(len(x), WIDTH)
        filled[:] = x
        return filled


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return x


class Branching(nn.Module):
    """Does one thing or another, as the data are."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Dropping(nn.Module):
    """Drops out without a layer that says so."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.3, self.training)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.unsqueeze(1))
        return torch.as_tensor(states[:, -1])


@final
class DropoutMlp(Model):
    """A small network with dropout, for images."""

    p: float = 0.5

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), WIDTH), nn.Dropout(self.p))
        return Headed(body, num_classes)


@final
class NormedMlp(Model):
    """A small network with batch normalisation, for images."""

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), WIDTH), nn.BatchNorm1d(WIDTH))
        return Headed(body, num_classes)
