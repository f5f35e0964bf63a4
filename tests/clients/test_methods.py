"""Clients' halves of algorithms against explicit objectives trained with autograd and torch.optim in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clients import app as client_app
from clients.app import LocalApp
from clients.methods import LocalMethod
from clients.methods.feddyn import DynamicRegularizer
from clients.methods.personal import Personal
from clients.methods.proximal import Proximal
from clients.methods.scaffold import ControlVariate
from clients.training import Fit, fit_each
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


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A second thread costs tensors of this size more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Tests

THETA = vector(0)
C, C_K, H_K, V_K = vector(1, 0.2), vector(2, 0.2), vector(3, 0.2), vector(4)


@dataclass(frozen=True)
class Case:
    """A method in the middle of a run, what it minimises beside f_k, and whether that is anything."""

    method: LocalMethod
    extra: Extra
    state: Vectors = field(default_factory=dict)
    received: Vectors = field(default_factory=dict)
    acts: bool = True


METHODS = {
    "fedprox": Case(Proximal(0.7), pull(0.7, THETA)),
    "scaffold": Case(ControlVariate(), lambda w: (C - C_K) @ w, {"control": C_K}, {"control": C}),
    "scaffold, client's first round": Case(ControlVariate(), lambda w: C @ w, {}, {"control": C}),
    "scaffold, nothing received": Case(ControlVariate(), lambda w: -C_K @ w, {"control": C_K}),
    "scaffold, first of all": Case(ControlVariate(), nothing, acts=False),
    "feddyn": Case(DynamicRegularizer(0.4), lambda w: pull(0.4, THETA)(w) - H_K @ w, {"linear": H_K}),
    "feddyn, client's first round": Case(DynamicRegularizer(0.4), pull(0.4, THETA)),
    "ditto": Case(Personal(0.7), nothing, {"personal": V_K}),
    "none": Case(LocalMethod(), nothing, acts=False),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "several epochs": {"local_epochs": 3},
    "one batch": {"batch_size": 100, "local_epochs": 2},
    "momentum": {"momentum": 0.9, "local_epochs": 2},
    "weight decay": {"weight_decay": 0.3, "local_epochs": 2},
    "clipped": {"clip_norm": 0.2, "local_epochs": 2},
    "all": {"momentum": 0.5, "weight_decay": 0.1, "clip_norm": 0.4, "local_epochs": 3},
}


def settings_of(name: str) -> ClientSettings:
    return ClientSettings(**{"batch_size": 4, **OPTIONS[name]})


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", METHODS)
def test_local_training_minimises_the_methods_objective(name: str, options: str) -> None:
    case, settings, data = METHODS[name], settings_of(options), shard()
    found = fit(case.method, settings, THETA, data, state=case.state, received=case.received)
    expected = slow_sgd(THETA, data, settings, stream(), case.extra)
    assert_equal(found.update, THETA - expected)
    steps = settings.local_epochs * -(-len(data) // settings.batch_size)
    assert found.report["steps"] == steps
    # Losses are f_k alone: rules that weigh clients by them must not see the method's terms.
    decay = settings.weight_decay
    assert found.report["loss"] == pytest.approx(float(objective(THETA, data, decay)), rel=1e-12)
    assert found.report["loss-after"] == pytest.approx(float(objective(expected, data, decay)), rel=1e-10)
    assert found.report["update-norm"] == pytest.approx(float((THETA - expected).norm()), rel=1e-10)


@pytest.mark.parametrize("name", [name for name, case in METHODS.items() if case.acts])
def test_the_terms_join_every_mini_batch(name: str) -> None:
    """Every step of an epoch moves the weights, and elsewhere than plain training would."""
    case, one, settings = METHODS[name], shard()[:1], ClientSettings(batch_size=1)

    def after(method: LocalMethod, steps: int) -> Tensor:
        """The weights that the terms act on, after steps on one example: whatever the order, the same batches."""
        data = Split(one.x.expand(steps, -1), one.y.expand(steps))
        found = fit(method, settings, THETA, data, state=case.state, received=case.received)
        return found.state["personal"] if method.personal else THETA - found.update

    plain = Personal(0.0) if case.method.personal else LocalMethod()
    ends = [after(case.method, steps) for steps in range(1, 7)]
    for steps, (before, end) in enumerate(pairwise(ends), start=2):
        assert float((end - before).norm()) > 1e-3, f"step {steps}"
        assert float((end - after(plain, steps)).norm()) > 1e-3, f"step {steps}"


@pytest.mark.parametrize("name", METHODS)
def test_what_goes_in_is_left_alone(name: str) -> None:
    case, data, theta = METHODS[name], shard(), THETA.clone()
    state = {key: value.clone() for key, value in case.state.items()}
    received = {key: value.clone() for key, value in case.received.items()}
    first = fit(case.method, settings_of("all"), theta, data, state=state, received=received)
    assert torch.equal(theta, THETA)
    assert all(torch.equal(value, case.state[key]) for key, value in state.items())
    assert all(torch.equal(value, case.received[key]) for key, value in received.items())
    again = fit(case.method, settings_of("all"), theta, data, state=state, received=received)
    assert torch.equal(first.update, again.update)
    assert first.report == again.report
    # What is kept is the client's, not memory of the network that trains the next client.
    before = {key: value.clone() for key, value in first.state.items()}
    fit(None, settings_of("plain"), THETA + 1.0, data)
    assert all(torch.equal(value, before[key]) for key, value in first.state.items())


def test_a_method_that_defines_nothing_changes_no_bit() -> None:
    data, settings = shard(), settings_of("all")
    plain, found = fit(None, settings, THETA, data), fit(LocalMethod(), settings, THETA, data, state={"x": C})
    assert torch.equal(found.update, plain.update)
    assert found.report == plain.report
    assert set(found.state) == {"x"}
    assert torch.equal(found.state["x"], C)


class TestProximal:
    @pytest.mark.parametrize("options", OPTIONS)
    def test_without_weight_it_changes_no_bit(self, options: str) -> None:
        data, settings = shard(), settings_of(options)
        plain, found = fit(None, settings, THETA, data), fit(Proximal(0.0), settings, THETA, data)
        assert torch.equal(found.update, plain.update)
        assert found.report == {**plain.report, "proximal": 0.0}

    def test_it_reports_the_term_and_keeps_nothing(self) -> None:
        found = fit(Proximal(0.7), settings_of("several epochs"), THETA, shard())
        assert found.report["proximal"] == pytest.approx(0.35 * float(found.update.square().sum()), rel=1e-12)
        assert found.report["proximal"] > 0
        assert found.state == {}


SCAFFOLD = [name for name in METHODS if name.startswith("scaffold")]


class TestControlVariate:
    @pytest.mark.parametrize("options", ["plain", "several epochs", "one batch", "weight decay"])
    @pytest.mark.parametrize("name", SCAFFOLD)
    def test_the_new_variate_is_the_mean_of_the_gradients_met(self, name: str, options: str) -> None:
        """Option II: whatever c and c_k were, they drop out, and the L2 term is part of the gradient."""
        case, settings, data = METHODS[name], settings_of(options), shard()
        found = fit(case.method, settings, THETA, data, state=case.state, received=case.received)
        gradients: list[Tensor] = []
        slow_sgd(THETA, data, settings, stream(), case.extra, seen=gradients)
        assert set(found.state) == {"control"}
        torch.testing.assert_close(
            found.state["control"], torch.stack(gradients).mean(dim=0), atol=1e-12, rtol=1e-9
        )
        assert found.report["control-norm"] == pytest.approx(float(found.state["control"].norm()))

    @pytest.mark.parametrize("weight_decay", [0.0, 0.3])
    @pytest.mark.parametrize("name", SCAFFOLD)
    def test_one_full_batch_gives_the_gradient_at_the_received_weights(
        self, name: str, weight_decay: float
    ) -> None:
        case, data = METHODS[name], shard()
        settings = ClientSettings(batch_size=100, weight_decay=weight_decay)
        found = fit(case.method, settings, THETA, data, state=case.state, received=case.received)
        expected = gradient(THETA, data, weight_decay)
        torch.testing.assert_close(found.state["control"], expected, atol=1e-13, rtol=1e-10)


class TestDynamicRegularizer:
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("h_k", [None, H_K])
    def test_the_linear_term_follows_the_local_weights(self, h_k: Tensor | None, options: str) -> None:
        data, settings, alpha = shard(), settings_of(options), 0.4
        found = fit(DynamicRegularizer(alpha), settings, THETA, data, state={} if h_k is None else {"linear": h_k})
        before = torch.zeros_like(THETA) if h_k is None else h_k
        local = slow_sgd(THETA, data, settings, stream(), lambda w: pull(alpha, THETA)(w) - before @ w)
        assert set(found.state) == {"linear"}
        assert_equal(found.state["linear"], before - alpha * (local - THETA))
        assert found.report["linear-norm"] == pytest.approx(float(found.state["linear"].norm()))

    def test_at_the_local_minimum_it_is_the_gradient_there(self) -> None:
        """grad f_k(w) - h_k + alpha (w - theta) = 0 at the minimum, hence h_k+ = grad f_k(w)."""
        data, alpha = shard(), 2.0
        settings = ClientSettings(batch_size=100, local_epochs=400, weight_decay=0.3)
        found = fit(DynamicRegularizer(alpha), settings, THETA, data, state={"linear": H_K})
        expected = gradient(THETA - found.update, data, 0.3)
        torch.testing.assert_close(found.state["linear"], expected, atol=1e-10, rtol=1e-8)


class TestPersonal:
    @pytest.mark.parametrize("epochs", [None, 1, 3])
    @pytest.mark.parametrize("lam", [0.0, 0.7])
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("v_k", [None, V_K])
    def test_the_own_model_goes_on_near_the_received_weights(
        self, v_k: Tensor | None, options: str, lam: float, epochs: int | None
    ) -> None:
        """It starts where it ended, with no momentum of the local model, and goes on along the client's batches."""
        data, settings = shard(), settings_of(options)
        found = fit(Personal(lam, epochs), settings, THETA, data, state={} if v_k is None else {"personal": v_k})
        batches = stream()
        local = slow_sgd(THETA, data, settings, batches)
        own = slow_sgd(THETA if v_k is None else v_k, data, settings, batches, pull(lam, THETA), epochs=epochs)
        assert_equal(found.update, THETA - local)
        assert set(found.state) == {"personal"}
        assert_equal(found.state["personal"], own)
        assert found.report["personal-distance"] == pytest.approx(float((own - THETA).norm()), rel=1e-9)

    @pytest.mark.parametrize("method", [Personal(0.0), Personal(3.0, 4)])
    def test_the_shared_half_keeps_its_bits(self, method: Personal) -> None:
        data, settings = shard(), settings_of("all")
        plain = fit(None, settings, THETA, data)
        found = fit(method, settings, THETA, data, state={"personal": V_K})
        assert torch.equal(found.update, plain.update)
        assert {name: found.report[name] for name in plain.report} == plain.report

    def test_alone_it_is_local_training_over_all_participations(self) -> None:
        """lam = 0: what the server sends after the first participation does not matter."""
        data, settings = shard(), settings_of("momentum")
        state: Vectors = {}
        own = THETA
        for number, seed in enumerate([0, 7, 8]):
            theta = vector(seed)
            found = fit(Personal(0.0), settings, theta, data, state=state, generator=seeds.generator(5, number))
            state = dict(found.state)
            batches = seeds.generator(5, number)
            for _ in range(settings.local_epochs):
                torch.randperm(len(data), generator=batches)  # the local model's epochs
            own = slow_sgd(own, data, settings, batches)
            assert_equal(state["personal"], own)

    def test_a_strong_pull_leaves_the_gradient_over_lam(self) -> None:
        """At the minimum lam (theta - v) = grad f_k(v), which tends to grad f_k(theta)."""
        data = shard()
        expected = gradient(THETA, data)
        misses = []
        for lam in (3.0, 6.0, 12.0):
            settings = ClientSettings(batch_size=100, local_epochs=150)
            own = fit(Personal(lam), settings, THETA, data).state["personal"]
            torch.testing.assert_close(lam * (THETA - own), gradient(own, data), atol=1e-11, rtol=1e-9)
            misses.append(float((lam * (THETA - own) - expected).norm()))
        assert misses[0] > 1.5 * misses[1] > 1.5**2 * misses[2] > 0

    def test_a_client_predicts_with_its_own_model_once_it_has_one(self) -> None:
        method = Personal(1.0)
        assert method.own_weights(THETA, {}) is THETA
        assert method.own_weights(THETA, {"personal": V_K}) is V_K
        assert Proximal(1.0).own_weights(THETA, {"personal": V_K}) is THETA


class TestLossesAsked:
    """query.losses: the training loss at the weights sent, the same number that training reports."""

    @pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "ditto"])
    @pytest.mark.parametrize("client", [{}, {"weight_decay": 0.3, "local_epochs": 2}])
    def test_it_is_the_loss_that_training_at_these_weights_reports(
        self, strategy: str, client: dict[str, Any]
    ) -> None:
        study = Study(strategy, **client)
        study.round()
        for _ in range(2):
            before, theta = kept(study.grid), torch.from_numpy(study.theta).double()
            asked = study.losses()
            assert_same_states(kept(study.grid), before)
            assert sorted(asked) == list(range(NUM_CLIENTS))
            for number, numbers in asked.items():
                data = federation().client(number).train
                whole = Split(data.x.double(), data.y)
                expected = objective(theta, whole, client.get("weight_decay", 0.0), linear)
                assert numbers["loss"] == pytest.approx(float(expected), rel=1e-5)
                assert numbers["num-examples"] == len(data)
            for number, (answer, _) in study.round().items():
                assert asked[number]["loss"] == answer.numbers["loss"]

    def test_without_local_steps_too(self) -> None:
        study = Study("fedavg", local_epochs=0, weight_decay=0.2)
        asked = study.losses()
        trained = study.round()
        assert len(trained) == PER_ROUND
        for number, (answer, _) in trained.items():
            assert asked[number]["loss"] == answer.numbers["loss"]


@pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "ditto"])
def test_a_round_that_left_the_finite_numbers_is_not_kept(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server leaves that client out; with what it kept before it can take part again."""
    study = Study(strategy, cohort="each")
    study.strategy.clients_per_round, study.strategy.max_failures = None, 1
    rows = [int(offset) for offset in federation().train_offsets[3:5]]

    def once_far_away(model: FlatNetwork, theta: Tensor, pool: Split, clients: Any, work: Any) -> list[Fit]:
        if study.number == 1 and clients[0].rows.start == rows[0]:
            far = pool.x.clone()
            far[slice(*rows)] *= 1e30
            pool = Split(far, pool.y)
        return fit_each(model, theta, pool, clients, work)

    monkeypatch.setattr(client_app, "fit_each", once_far_away)
    study.round()
    before = kept(study.grid)[3]
    study.round()
    assert [failure.client for failure in study.strategy.last.failures] == [3]
    assert_same_states({3: kept(study.grid)[3]}, {3: before})
    study.round()
    assert study.strategy.last.failures == ()
