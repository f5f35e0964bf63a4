"""Clients' halves of algorithms, slowly and by explicit objectives: what their tests hold them against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clients.app import LocalApp
from clients.methods import LocalMethod
from clients.training import Fit
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.engine.base import BlockGrid
from fedsim.engine.local import LocalGrid
from fedsim.federation import Federation
from fedsim.models import Outputs
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork, Layout
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.settings import ClientSettings
from fedsim.wire import LOSSES, Answer, pack_arrays, pack_request, read, read_update, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import AnyRule, Cohort, Direction, MemoryRule, Rule
from tests.clients.one import fit_one

CPU = torch.device("cpu")


NUM_FEATURES, NUM_HIDDEN, NUM_CLASSES = 5, 6, 4


SIZES = (NUM_HIDDEN * NUM_FEATURES, NUM_HIDDEN, NUM_CLASSES * NUM_HIDDEN, NUM_CLASSES)


LR = 0.1


Logits = Callable[[Tensor, Tensor], Tensor]


Extra = Callable[[Tensor], Tensor]


Vectors = dict[str, Tensor]


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(NUM_FEATURES, NUM_HIDDEN)
        self.head = nn.Linear(NUM_HIDDEN, NUM_CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Outputs:
        features = torch.tanh(self.body(x))
        return Outputs(self.head(features), features)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.double()

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(self.head(x), x)


def perceptron(w: Tensor, x: Tensor) -> Tensor:
    """The same network, written out on the flat vector."""
    body, body_bias, head, head_bias = w.split(SIZES)
    hidden = torch.tanh(x @ body.view(NUM_HIDDEN, NUM_FEATURES).T + body_bias)
    return hidden @ head.view(NUM_CLASSES, NUM_HIDDEN).T + head_bias


def linear(w: Tensor, x: Tensor) -> Tensor:
    """Multinomial logistic regression on the flat vector, for any number of features and classes."""
    num_features = x.flatten(1).shape[1]
    num_classes = len(w) // (num_features + 1)
    return x.flatten(1) @ w[:-num_classes].view(num_classes, num_features).T + w[-num_classes:]


def objective(w: Tensor, data: Split, weight_decay: float = 0.0, logits: Logits = perceptron) -> Tensor:
    """f_k, the L2 term included."""
    return cross_entropy(logits(w, data.x), data.y) + 0.5 * weight_decay * w.square().sum()


def gradient(w: Tensor, data: Split, weight_decay: float = 0.0, logits: Logits = perceptron) -> Tensor:
    leaf = w.clone().requires_grad_()
    return torch.autograd.grad(objective(leaf, data, weight_decay, logits), leaf)[0]


def nothing(w: Tensor) -> Tensor:
    return 0.0 * w.sum()


def slow_sgd(
    begin: Tensor,
    data: Split,
    settings: ClientSettings,
    generator: torch.Generator,
    extra: Extra = nothing,
    *,
    lr: float = LR,
    epochs: int | None = None,
    logits: Logits = perceptron,
    seen: list[Tensor] | None = None,
) -> Tensor:
    """Minimise f_k + extra; put the gradient of f_k alone at every step into `seen`."""
    w = begin.clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr=lr, momentum=settings.momentum)
    for _ in range(settings.local_epochs if epochs is None else epochs):
        for rows in torch.randperm(len(data), generator=generator).split(settings.batch_size):
            if seen is not None:
                seen.append(gradient(w.detach(), data[rows], settings.weight_decay, logits))
            optimizer.zero_grad()
            (objective(w, data[rows], settings.weight_decay, logits) + extra(w)).backward()
            assert w.grad is not None
            if settings.clip_norm is not None:
                w.grad *= min(1.0, settings.clip_norm / float(w.grad.norm()))
            optimizer.step()
    return w.detach()


def pull(weight: float, towards: Tensor) -> Extra:
    return lambda w: 0.5 * weight * (w - towards).square().sum()


def shard(count: int = 23, seed: int = 0) -> Split:
    """A client's examples; classes are unevenly likely, and differently for every seed."""
    generator = torch.Generator().manual_seed(seed)
    likely = torch.rand(NUM_CLASSES, generator=generator, dtype=torch.float64) ** 3 + 0.02
    y = torch.multinomial(likely, count, replacement=True, generator=generator)
    x = torch.randn(count, NUM_FEATURES, generator=generator, dtype=torch.float64)
    return Split(x + torch.randn(NUM_FEATURES, generator=generator, dtype=torch.float64), y)


def vector(seed: int, scale: float = 0.5, size: int = sum(SIZES)) -> Tensor:
    return scale * torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stream() -> torch.Generator:
    return seeds.generator(1, "batches", 2, 3)


def fit(
    method: LocalMethod | None,
    settings: ClientSettings,
    theta: Tensor,
    data: Split,
    *,
    state: Vectors | None = None,
    received: Vectors | None = None,
    generator: torch.Generator | None = None,
) -> Fit:
    model = FlatNetwork(Perceptron(), CPU)
    return fit_one(
        model, theta, data, settings, LR, generator or stream(), state=state, method=method, received=received
    )


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-10)


# Several rounds with float64 weights, and with real clients


@dataclass
class Course:
    """What a run of rounds leaves: the weights before round 1 and after every round, and what is remembered."""

    thetas: list[Tensor]
    states: dict[int, Vectors] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)


def train_in_float64(
    rule: AnyRule,
    shards: Sequence[Split],
    settings: ClientSettings,
    cohorts: Sequence[Sequence[int]],
    lr: float = LR,
) -> Course:
    """Run a rule with its clients' half on logistic regression, in the precision of the oracles."""
    model = FlatNetwork(Linear(), CPU)
    course = Course([torch.zeros_like(model.theta)])
    if isinstance(rule, MemoryRule):
        course.memory = rule.initial_memory()
    for number, clients in enumerate(cohorts, start=1):
        theta = course.thetas[-1]
        received = dict(rule.broadcast(course.memory)) if isinstance(rule, MemoryRule) else {}
        fits = [
            fit_one(
                model,
                theta,
                shards[client],
                settings,
                lr,
                seeds.generator(0, "batches", number, client),
                state=course.states.get(client),
                method=rule.local(),
                received=received,
            )
            for client in clients
        ]
        course.states |= {client: dict(found.state) for client, found in zip(clients, fits, strict=True)}
        sizes = torch.tensor([len(shards[client]) for client in clients], dtype=torch.float64)
        cohort = Cohort(
            updates=torch.stack([found.update for found in fits]),
            losses=torch.tensor([found.report["loss"] for found in fits], dtype=torch.float64),
            weights=sizes / sizes.sum(),
            clients=tuple(clients),
            reports={
                name: torch.tensor([found.report[name] for found in fits], dtype=torch.float64)
                for name in rule.needs
            },
            server_round=number,
            num_clients=len(shards),
        )
        direction: Direction
        if isinstance(rule, MemoryRule):
            direction, course.memory = rule.direction(cohort, course.memory)
        else:
            assert isinstance(rule, Rule)
            direction = rule.direction(cohort)
        course.thetas.append(theta - rule.default_server_lr * direction.vector)
    return course


def optimum(shards: Sequence[Split], weight_decay: float) -> Tensor:
    """The minimiser of the unweighted mean of the clients' objectives, by Newton's method."""
    w = torch.zeros(NUM_CLASSES * (NUM_FEATURES + 1), dtype=torch.float64, requires_grad=True)
    for _ in range(30):
        mean = torch.stack([objective(w, data, weight_decay, linear) for data in shards]).mean()
        (slope,) = torch.autograd.grad(mean, w, create_graph=True)
        if float(slope.detach().norm()) < 1e-13:
            return w.detach()
        curvature = torch.stack([torch.autograd.grad(part, w, retain_graph=True)[0] for part in slope])
        step = torch.linalg.solve(curvature, slope.detach())
        w = (w - step / max(1.0, float(step.norm()))).detach().requires_grad_()
    raise AssertionError("no optimum found")


NUM_CLIENTS, PER_ROUND = 7, 3


def scenario_of(strategy: str | Mapping[str, Any], **client: Any) -> Scenario:
    table = {"name": strategy} if isinstance(strategy, str) else dict(strategy)
    return Scenario.of(
        {
            "name": "small",
            "seed": 2,
            "data": {"name": "digits", "limit": 300},
            "partition": {"name": "dirichlet", "num_clients": NUM_CLIENTS, "alpha": 0.5},
            "model": {"name": "logistic"},
            "client": {"batch_size": 16, "lr": 0.1, **client},
            "strategy": table,
            "server": {"clients_per_round": PER_ROUND},
        }
    )


@lru_cache(maxsize=1)
def federation() -> Federation:
    """Owners depend on the data and the partition alone, which all scenarios here share."""
    scenario = scenario_of("fedavg")
    return Federation.build(scenario.data, scenario.partition, scenario.seed, Path())


class Study:
    """Rounds of real clients over a grid, one at a time."""

    def __init__(self, strategy: str | Mapping[str, Any], grid: BlockGrid | None = None, **client: Any) -> None:
        self.scenario = scenario_of(strategy, **client)
        self.grid = LocalGrid(LocalApp(self.scenario, federation())) if grid is None else grid
        found = strategy_of(self.scenario)
        assert isinstance(found, RuleStrategy)
        self.strategy = found
        network = build_model(self.scenario.model, federation().input_shape, 10, self.scenario.seed)
        self.arrays = pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})
        self.number = 0

    @property
    def layout(self) -> Layout:
        return Layout.of(unpack_arrays(self.arrays))

    @property
    def theta(self) -> np.ndarray:
        return self.layout.join(unpack_arrays(self.arrays))

    def requests(self) -> list[Message]:
        return list(self.strategy.configure_train(self.number + 1, self.arrays, ConfigRecord(), self.grid))

    def round(self) -> dict[int, tuple[Answer, np.ndarray]]:
        """Train once; return what each client of the round answered, and its update."""
        theta, layout = self.theta, self.layout
        replies = self.grid.send_and_receive(self.requests())
        answered = [reply for reply in replies if not reply.has_error()]
        answers = {read(reply).client: (read(reply), read_update(reply, theta, layout)) for reply in answered}
        after, _ = self.strategy.aggregate_train(self.number + 1, replies)
        assert after is not None
        self.arrays, self.number = after, self.number + 1
        return answers

    def evaluate(self) -> dict[int, Mapping[str, float]]:
        sent = list(self.strategy.configure_evaluate(self.number, self.arrays, ConfigRecord(), self.grid))
        return {answer.client: answer.numbers for answer in map(read, self.grid.send_and_receive(sent))}

    def losses(self) -> dict[int, Mapping[str, float]]:
        """Every client's training loss at the present weights."""
        content = pack_request(self.arrays, ConfigRecord(), self.number, wants_update=False)
        sent = [Message(content, dst_node_id=node, message_type=LOSSES) for node in self.grid.get_node_ids()]
        return {answer.client: answer.numbers for answer in map(read, self.grid.send_and_receive(sent))}


def kept(grid: BlockGrid) -> dict[int, dict[str, np.ndarray]]:
    """Copies of what the clients keep."""
    return {
        client: {name: array.copy() for name, array in state.items()}
        for client, state in grid.client_states().items()
    }


def assert_same_states(found: Mapping[int, Mapping[str, Any]], expected: Mapping[int, Mapping[str, Any]]) -> None:
    assert {client: set(state) for client, state in found.items()} == {
        client: set(state) for client, state in expected.items()
    }
    for client, state in found.items():
        for name, array in state.items():
            np.testing.assert_array_equal(array, expected[client][name], err_msg=f"{name} of client {client}")
