"""A few clients with shards of different sizes, trained one after the other and in a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clients.hooks import Hook
from clients.methods import LocalMethod
from clients.objective import Objective
from clients.steps import Client
from clients.training import Fit, QuasiNewton, Work, fit_each, fit_stacked, shapes_of
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.models import Outputs
from fedsim.models.logistic import Logistic
from fedsim.models.mlp import Mlp
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings

SIZES = (13, 4, 9, 1, 8)
NUM_CLASSES = 4
IMAGE = (2, 12, 12)


class Convolutions(nn.Module):
    """A small network of the kinds of layers the real ones have."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(IMAGE[0], 4, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(64, 7),
        )
        self.head = nn.Linear(7, NUM_CLASSES)

    def forward(self, x: Tensor) -> Outputs:
        features = torch.relu(self.body(x))
        return Outputs(self.head(features), features)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: Logistic().build(IMAGE, NUM_CLASSES),
    "mlp": lambda: Mlp(hidden=(9, 6)).build(IMAGE, NUM_CLASSES),
    "convolutions": Convolutions,
}


def network(name: str, dtype: torch.dtype = torch.float64) -> FlatNetwork:
    with seeds.global_stream(5, name):
        built = NETWORKS[name]()
    return FlatNetwork(built.to(dtype), torch.device("cpu"))


def pool(dtype: torch.dtype = torch.float64, sizes: Sequence[int] = SIZES) -> Split:
    generator = seeds.generator(2, "pool")
    x = torch.randn(sum(sizes), *IMAGE, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, NUM_CLASSES, (sum(sizes),), generator=generator)
    return Split(x + 0.5 * y.view(-1, 1, 1, 1), y)


@dataclass
class Block:
    """Clients of ragged shards, and what they are trained with."""

    network: str = "mlp"
    dtype: torch.dtype = torch.float64
    sizes: Sequence[int] = SIZES
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    method: LocalMethod | None = None
    newton: QuasiNewton | None = None
    received: Mapping[str, Tensor] = field(default_factory=dict)
    lr: float = 0.1
    shares: Sequence[float] = ()

    def __post_init__(self) -> None:
        self.model = network(self.network, self.dtype)
        self.pool = pool(self.dtype, self.sizes)
        self.theta = self.model.theta.clone()
        self.client_settings = ClientSettings(**{"batch_size": 4, "local_epochs": 2, **self.settings})
        shapes = shapes_of(self.model, self.pool.x[:1], self.client_settings.batch_size)
        self.objective = Objective(self.hooks, shapes)

    def clients(self, number: int, states: Sequence[Mapping[str, Tensor]] | None = None) -> list[Client]:
        ends = torch.tensor([0, *self.sizes]).cumsum(0).tolist()

        def stream_of(client: int) -> Callable[[str], torch.Generator]:
            return lambda purpose: seeds.generator(0, purpose, number, client)

        return [
            Client(
                range(ends[k], ends[k + 1]),
                stream_of(k),
                {} if states is None else states[k],
                self.shares[k] if self.shares else 1.0,
            )
            for k in range(len(self.sizes))
        ]

    def work(self) -> Work:
        return Work(
            self.client_settings,
            self.lr,
            self.objective,
            self.newton,
            self.method,
            self.received,
            largest=max(self.sizes),
        )

    def fits(
        self, how: Callable[..., list[Fit]], number: int = 1, states: Sequence[Mapping[str, Tensor]] | None = None
    ) -> list[Fit]:
        return how(self.model, self.theta, self.pool, self.clients(number, states), self.work())

    def both(self, rounds: int = 2) -> list[tuple[Fit, Fit]]:
        """Train every client for some rounds from the same weights, keeping its state; both ways."""
        found: dict[Any, list[Fit]] = {}
        for how in (fit_each, fit_stacked):
            states = None
            for number in range(1, rounds + 1):
                found[how] = self.fits(how, number, states)
                states = [fit.state for fit in found[how]]
        return list(zip(found[fit_each], found[fit_stacked], strict=True))


def assert_same(pairs: Sequence[tuple[Fit, Fit]], tolerance: float) -> None:
    """Updates, reports and states agree within a tolerance, relative to their size where that is above 1."""
    for one, other in pairs:
        torch.testing.assert_close(other.update, one.update, atol=tolerance, rtol=tolerance)
        assert [name for name in other.report if name != "block"] == [n for n in one.report if n != "block"]
        for name, value in one.report.items():
            if name == "block":
                continue
            torch.testing.assert_close(other.report[name], value, atol=tolerance, rtol=tolerance, msg=name)
        assert set(other.state) == set(one.state)
        for name, kept in one.state.items():
            torch.testing.assert_close(other.state[name], kept, atol=tolerance, rtol=tolerance)
