"""FedAdam, FedYogi and FedAdagrad against loops over single numbers, and against Flower's own strategies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim.engine.flower import give_id
from fedsim.engine.local import LocalGrid
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import AnyRule, Cohort, MemoryRule, Rule
from strategies.rules._fedopt import FedOpt
from strategies.rules.fedadagrad import FedAdagrad
from strategies.rules.fedadam import FedAdam
from strategies.rules.fedavg import FedAvg
from strategies.rules.fedyogi import FedYogi
from strategies.rules.qfedavg import QFedAvg
from tests.engine.fakes import FakeApp
from tests.strategies.rows import quick

Array = NDArray[np.floating[Any]]
RULES: list[type[FedOpt]] = [FedAdam, FedYogi, FedAdagrad]
CLIENTS, ROUNDS = 5, 6


def cohort_of(server_round: int, dtype: torch.dtype = torch.float64) -> Cohort:
    """Other clients, other sizes and other updates in every round."""
    rng = np.random.default_rng(server_round)
    clients = rng.permutation(CLIENTS)[: 2 + server_round % 3]
    sizes = torch.from_numpy(rng.uniform(1.0, 9.0, len(clients)))
    updates = torch.from_numpy(rng.normal(size=(len(clients), 6)) * [1.0, 0.3, 0.1, 1e-2, 1e-4, 0.0])
    cohort = Cohort.of(updates.to(dtype), torch.ones(len(clients)), sizes / sizes.sum())
    return replace(cohort, clients=tuple(clients.tolist()), server_round=server_round)


def vectors_of(rule: MemoryRule, dtype: torch.dtype = torch.float64) -> list[list[float]]:
    memory, vectors = rule.initial_memory(), []
    for server_round in range(1, ROUNDS + 1):
        direction, memory = rule.direction(cohort_of(server_round, dtype), memory)
        assert direction.weights is None
        vectors.append(direction.vector.tolist())
    return vectors


def vectors_by_loops(rule: FedOpt) -> list[list[float]]:
    """Algorithm 2, one coordinate after the other, in the paper's signs: Delta = theta_k - theta."""
    beta_2 = getattr(rule, "beta_2", 0.0)
    columns = []
    for coordinate in range(6):
        m = 0.0
        v = rule.tau**2 if rule.initial_variance == "tau_squared" else 0.0
        column = []
        for server_round in range(1, ROUNDS + 1):
            cohort = cohort_of(server_round)
            count = len(cohort.clients)
            shares = cohort.weights.tolist() if rule.weighting == "examples" else [1.0 / count] * count
            delta = -sum(p * float(row[coordinate]) for p, row in zip(shares, cohort.updates, strict=True))
            m = rule.beta_1 * m + (1 - rule.beta_1) * delta
            if isinstance(rule, FedAdam):
                v = beta_2 * v + (1 - beta_2) * delta**2
            elif isinstance(rule, FedYogi):
                sign = (v > delta**2) - (v < delta**2)
                v = v - (1 - beta_2) * delta**2 * sign
            else:
                v = v + delta**2
            factor = 1.0
            if getattr(rule, "bias_correction", False):
                factor = math.sqrt(1 - beta_2 ** (server_round + 1)) / (1 - rule.beta_1 ** (server_round + 1))
            column.append(-factor * m / (math.sqrt(v) + rule.tau))
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weighting": "uniform"},
    {"initial_variance": "zero"},
    {"beta_1": 0.5, "tau": 0.05, "weighting": "uniform", "initial_variance": "zero"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", RULES)
def test_rounds_equal_plain_loops(kind: type[FedOpt], options: dict[str, Any]) -> None:
    rule = kind(**options)
    np.testing.assert_allclose(vectors_of(rule), vectors_by_loops(rule), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS)
def test_bias_corrected_rounds_equal_plain_loops(options: dict[str, Any]) -> None:
    rule = FedAdam(bias_correction=True, beta_2=0.9, **options)
    np.testing.assert_allclose(vectors_of(rule), vectors_by_loops(rule), rtol=1e-10, atol=1e-15)
    assert not np.allclose(vectors_of(rule), vectors_of(FedAdam(beta_2=0.9, **options)), rtol=1e-2)


def test_the_defaults_are_the_papers_and_the_learning_rates_flowers() -> None:
    adam, yogi, adagrad = FedAdam(), FedYogi(), FedAdagrad()
    assert (adam.beta_1, adam.beta_2, adam.tau, adam.bias_correction) == (0.9, 0.99, 1e-3, False)
    assert (yogi.beta_1, yogi.beta_2, yogi.tau) == (0.9, 0.99, 1e-3)
    assert (adagrad.beta_1, adagrad.tau) == (0.0, 1e-3)
    for rule, theirs in [(adam, flower.FedAdam()), (yogi, flower.FedYogi()), (adagrad, flower.FedAdagrad())]:
        assert rule.default_server_lr == theirs.eta
        assert rule.initial_variance == "tau_squared"


@pytest.mark.parametrize("kind", RULES)
def test_a_large_tau_without_momentum_is_fedavg(kind: type[FedOpt]) -> None:
    """With v from 0, and the learning rate tau times FedAvg's."""
    tau = 1e8
    found = vectors_of(kind(beta_1=0.0, tau=tau, initial_variance="zero"))
    for server_round, vector in enumerate(found, start=1):
        cohort = cohort_of(server_round)
        torch.testing.assert_close(
            tau * torch.tensor(vector, dtype=torch.float64),
            FedAvg().direction(cohort).vector,
            rtol=1e-6,
            atol=1e-9,
        )


@pytest.mark.parametrize("kind", RULES)
def test_the_first_step_goes_down_every_coordinate(kind: type[FedOpt]) -> None:
    cohort = cohort_of(1)
    rule = kind()
    vector = rule.direction(cohort, rule.initial_memory())[0].vector
    assert torch.equal(vector.sign(), FedAvg().direction(cohort).vector.sign())


def test_steps_of_single_clients_reach_the_size_adam_promises() -> None:
    """A gradient that never changes ends in a step of almost 1 in every coordinate, however small it is."""
    update = torch.tensor([[3.0, -0.5, 0.1]], dtype=torch.float64)
    rule, memory = FedAdam(), FedAdam().initial_memory()
    for server_round in range(1, 2001):
        cohort = replace(Cohort.of(update, torch.ones(1)), server_round=server_round)
        direction, memory = rule.direction(cohort, memory)
    expected = update[0] / (update[0].abs() + 1e-3)
    torch.testing.assert_close(direction.vector, expected, rtol=1e-6, atol=0)


@quick
@given(st.lists(st.floats(-10.0, 10.0), min_size=1, max_size=12), st.floats(0.0, 0.999))
def test_the_variance_of_yogi_is_never_negative(series: list[float], beta_2: float) -> None:
    rule, memory = FedYogi(beta_2=beta_2), FedYogi().initial_memory()
    for value in series:
        cohort = Cohort.of(torch.tensor([[value]], dtype=torch.float64), torch.ones(1))
        direction, memory = rule.direction(cohort, memory)
        assert float(memory["v"].min()) >= 0.0
        assert bool(direction.vector.isfinite().all())


@pytest.mark.parametrize("kind", RULES)
def test_float32_updates_are_remembered_in_float64(kind: type[FedOpt]) -> None:
    rule = kind()
    direction, memory = rule.direction(cohort_of(1, torch.float32), rule.initial_memory())
    assert direction.vector.dtype == torch.float32
    assert {name: tensor.dtype for name, tensor in memory.items()} == {"m": torch.float64, "v": torch.float64}
    np.testing.assert_allclose(vectors_of(rule, torch.float32), vectors_of(rule), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{"beta_1": 1.0}, {"beta_1": -0.1}, {"tau": 0.0}, {"weighting": "losses"}])
@pytest.mark.parametrize("kind", RULES)
def test_impossible_options_are_refused(kind: type[FedOpt], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        kind(**options)


START = {"w": np.array([[0.5, -0.3], [0.2, 0.1]]), "b": np.array([0.4, -0.6, 0.05])}

PAIRS: dict[str, tuple[AnyRule, float, Callable[[], flower.Strategy]]] = {
    "fedavg": (FedAvg(), 1.0, flower.FedAvg),
    "qfedavg": (QFedAvg(q=0.7, client_lr=0.05), 1.0, lambda: flower.QFedAvg(client_learning_rate=0.05, q=0.7)),
    "fedadam": (FedAdam(bias_correction=True, initial_variance="zero"), 0.1, flower.FedAdam),
    "fedyogi": (FedYogi(initial_variance="zero"), 0.01, flower.FedYogi),
    "fedadagrad": (FedAdagrad(initial_variance="zero"), 0.1, flower.FedAdagrad),
}


def rounds_for(rule: AnyRule) -> int:
    """Without memory nothing adds up over rounds, and Flower's q-FedAvg takes half a second for one."""
    return ROUNDS if isinstance(rule, MemoryRule) else 2


class TestAgainstFlower:
    """The same clients for Flower's strategies and for ours, each from its own weights, some of them a round."""

    @staticmethod
    def taking_part(server_round: int) -> list[int]:
        rng = np.random.default_rng(100 + server_round)
        return sorted(rng.permutation(CLIENTS)[: 2 + server_round % 3].tolist())

    @staticmethod
    def trained(server_round: int, client: int, theta: dict[str, Array]) -> tuple[dict[str, Array], float, float]:
        """A client's local weights, its loss at the received ones, and its number of examples."""
        rng = np.random.default_rng([server_round, client])
        local = {
            name: (array - 0.1 * rng.normal(size=array.shape)).astype(array.dtype) for name, array in theta.items()
        }
        return local, float(rng.uniform(0.3, 2.0)), float(rng.integers(10, 90))

    def through(self, strategy: flower.Strategy, dtype: type[np.floating[Any]], rounds: int) -> list[Array]:
        """The weights after each round."""
        arrays = pack_arrays({name: array.astype(dtype) for name, array in START.items()})
        found = []
        for server_round in range(1, rounds + 1):
            theta = unpack_arrays(arrays)
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), LocalGrid(FakeApp(CLIENTS)))
            replies = [
                self.reply(server_round, message, theta)
                for message in sorted(messages, key=lambda message: message.metadata.dst_node_id)
                if message.metadata.dst_node_id - 1 in self.taking_part(server_round)
            ]
            stepped, _ = strategy.aggregate_train(server_round, replies)
            assert isinstance(stepped, ArrayRecord)
            arrays = stepped
            found.append(np.concatenate([array.reshape(-1) for array in unpack_arrays(arrays).values()]))
        return found

    def reply(self, server_round: int, message: Message, theta: dict[str, Any]) -> Message:
        client = message.metadata.dst_node_id - 1
        local, loss, size = self.trained(server_round, client, theta)
        numbers = {"client": client, "num-examples": size, "loss": loss, "train_loss": loss}
        give_id(message)
        return Message(
            RecordDict({"arrays": pack_arrays(local), "metrics": MetricRecord(numbers)}),  # type: ignore[arg-type]
            reply_to=message,
        )

    def by_the_rule(self, rule: AnyRule, server_lr: float, rounds: int) -> list[Array]:
        """The weights after each round, with nothing but the rule, in float64."""
        theta = np.concatenate([array.reshape(-1) for array in START.values()])
        memory = rule.initial_memory() if isinstance(rule, MemoryRule) else {}
        found = []
        for server_round in range(1, rounds + 1):
            rows, losses, sizes = [], [], []
            for client in self.taking_part(server_round):
                local, loss, size = self.trained(
                    server_round, client, {"w": theta[:4].reshape(2, 2), "b": theta[4:]}
                )
                rows.append(theta - np.concatenate([array.reshape(-1) for array in local.values()]))
                losses.append(loss)
                sizes.append(size)
            shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
            cohort = Cohort.of(torch.from_numpy(np.stack(rows)), torch.tensor(losses, dtype=torch.float64), shares)
            cohort = replace(cohort, server_round=server_round)
            if isinstance(rule, MemoryRule):
                direction, memory = rule.direction(cohort, memory)
            else:
                assert isinstance(rule, Rule)
                direction = rule.direction(cohort)
            theta = theta - server_lr * direction.vector.numpy()
            found.append(theta)
        return found

    @pytest.mark.parametrize(("rule", "server_lr", "theirs"), PAIRS.values(), ids=PAIRS)
    def test_in_float64_the_rules_are_flowers(
        self, rule: AnyRule, server_lr: float, theirs: Callable[[], flower.Strategy]
    ) -> None:
        rounds = rounds_for(rule)
        found = self.by_the_rule(rule, server_lr, rounds)
        expected = self.through(theirs(), np.float64, rounds)
        assert not np.allclose(found[0], found[-1], atol=1e-3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("rule", "server_lr", "theirs"), PAIRS.values(), ids=PAIRS)
    def test_in_float32_the_strategies_answer_the_same_messages_alike(
        self, rule: AnyRule, server_lr: float, theirs: Callable[[], flower.Strategy]
    ) -> None:
        ours, rounds = RuleStrategy(rule, server_lr=server_lr), rounds_for(rule)
        expected = self.through(theirs(), np.float32, rounds)
        np.testing.assert_allclose(self.through(ours, np.float32, rounds), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("kind", "theirs"), [(FedAdam, flower.FedAdam), (FedYogi, flower.FedYogi)])
    def test_the_papers_settings_are_not_flowers(self, kind: type[FedOpt], theirs: Any) -> None:
        """What the named options are for: a v that starts at tau^2, and no factor of the step."""
        found = self.by_the_rule(kind(tau=0.05), kind().default_server_lr, 1)
        assert not np.allclose(found, self.through(theirs(tau=0.05), np.float64, 1), atol=1e-4)
