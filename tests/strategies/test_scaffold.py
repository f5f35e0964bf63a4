"""SCAFFOLD: the paper's algorithm line by line, the server's variate as a mean over all clients, no drift."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor

from fedsim import seeds, wire
from fedsim.datasets import Split
from fedsim.errors import ScenarioError
from fedsim.parameters import Layout
from fedsim.settings import ClientSettings
from strategies.rules import Cohort
from strategies.rules.fedavg import FedAvg
from strategies.rules.scaffold import SCAFFOLD
from tests.clients.methods import (
    LR,
    NUM_CLIENTS,
    PER_ROUND,
    Study,
    federation,
    gradient,
    linear,
    optimum,
    scenario_of,
    shard,
    slow_sgd,
    train_in_float64,
)
from tests.test_wire import travelled

NUM = 5
SHARDS = [shard(count, seed) for seed, count in enumerate((20, 13, 40, 31, 8), start=10)]
# Client 4 never takes part and counts all the same; cohorts differ in size.
COHORTS = [(0, 2), (1, 2, 3), (0,), (0, 1, 2, 3), (3,), (1, 3), (0, 1, 2)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(count: int, num_rounds: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [sorted(torch.randperm(NUM, generator=generator)[:count].tolist()) for _ in range(num_rounds)]


def double(data: Split) -> Split:
    return Split(data.x.double(), data.y)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_rounds_equal_a_plain_reading_of_the_paper(weighting: Any) -> None:
    """Algorithm 1, option II; batches are ragged, and clients take different numbers of steps."""
    settings = ClientSettings(batch_size=8, local_epochs=2, weight_decay=0.1)
    found = train_in_float64(SCAFFOLD(weighting=weighting), SHARDS, settings, COHORTS)
    x = torch.zeros_like(found.thetas[0])
    c = torch.zeros_like(x)
    own = [torch.zeros_like(x) for _ in range(NUM)]
    for number, clients in enumerate(COHORTS, start=1):
        changes, moves = [], []
        for client in clients:
            shift, data = c - own[client], SHARDS[client]
            y = slow_sgd(
                x,
                data,
                settings,
                seeds.generator(0, "batches", number, client),
                lambda w, shift=shift: shift @ w,  # type: ignore[misc]
                logits=linear,
            )
            steps = 2 * -(-len(data) // 8)
            new = own[client] - c + (x - y) / (steps * LR)
            changes.append(new - own[client])
            moves.append(y - x)
            own[client] = new
        shares = torch.tensor([len(SHARDS[client]) for client in clients], dtype=torch.float64)
        if weighting == "uniform":
            shares = torch.ones_like(shares)
        x = x + (shares / shares.sum()) @ torch.stack(moves)
        c = c + torch.stack(changes).sum(dim=0) / NUM
        torch.testing.assert_close(found.thetas[number], x, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found.memory["control"], c, atol=1e-12, rtol=1e-9)
    assert sorted(found.states) == [0, 1, 2, 3]
    for client, state in found.states.items():
        torch.testing.assert_close(state["control"], own[client], atol=1e-12, rtol=1e-9)


class TestFirstRound:
    def test_clients_train_as_fedavgs_and_count_evenly(self) -> None:
        plain, study = Study("fedavg", local_epochs=2), Study("scaffold", local_epochs=2)
        before = study.theta.astype(np.float64)
        expected, found = plain.round(), study.round()
        assert list(found) == list(expected)
        assert len({answer.numbers["num-examples"] for answer, _ in found.values()}) > 1
        for number, (_, update) in expected.items():
            assert np.array_equal(found[number][1], update)
        mean = np.mean([update for _, update in expected.values()], axis=0, dtype=np.float64)
        np.testing.assert_allclose(study.theta, before - mean, rtol=1e-6, atol=1e-7)
        assert study.strategy.last.weights == pytest.approx(dict.fromkeys(found, 1 / PER_ROUND))

    def test_weighted_by_examples_it_is_fedavg(self) -> None:
        plain, study = Study("fedavg"), Study({"name": "scaffold", "weighting": "examples"})
        plain.round()
        study.round()
        assert np.array_equal(study.theta, plain.theta)
        plain.round()
        study.round()
        assert not np.allclose(study.theta, plain.theta, rtol=1e-3)


class TestServersVariate:
    @pytest.mark.parametrize("server_lr", [1.0, 0.5])
    @pytest.mark.parametrize(
        "client", [{}, {"local_epochs": 2, "weight_decay": 0.1, "lr_decay": 0.7}, {"batch_size": 1000}]
    )
    def test_it_is_the_mean_over_all_clients_of_what_they_keep(
        self, client: dict[str, Any], server_lr: float
    ) -> None:
        study = Study("scaffold", **client)
        study.strategy.server_lr = server_lr
        took_part: set[int] = set()
        for number in range(1, 9):
            took_part |= set(study.round())
            states = study.grid.client_states()
            assert set(states) == took_part
            total = sum((state["control"].astype(np.float64) for state in states.values()), np.zeros(650))
            control = study.strategy.memory["control"].double().numpy()
            np.testing.assert_allclose(control, total / NUM_CLIENTS, rtol=1e-4, atol=2e-6)
            assert np.abs(control).max() > 1e-3
            if number == 1:
                assert len(took_part) == PER_ROUND < NUM_CLIENTS
        assert len(took_part) == NUM_CLIENTS

    def test_it_reaches_the_clients(self) -> None:
        """One step on the whole shard moves a client by lr (grad f_k - c_k + c)."""
        study = Study("scaffold", batch_size=1000)
        own: dict[int, Tensor] = {}
        repeated = False
        for _ in range(5):
            c = sum(own.values(), torch.zeros(650, dtype=torch.float64)) / NUM_CLIENTS
            theta = torch.from_numpy(study.theta).double()
            for number, (_, update) in study.round().items():
                slope = gradient(theta, double(federation().client(number).train), 0.0, linear)
                expected = 0.1 * (slope - own.get(number, torch.zeros_like(c)) + c)
                np.testing.assert_allclose(update, expected.numpy(), atol=2e-7, rtol=1e-4)
                repeated |= number in own
                own[number] = slope
        assert repeated

    def test_only_training_that_has_a_variate_sends_one(self) -> None:
        study = Study("scaffold")
        assert set(study.requests()[0].content) == {"arrays", "config"}
        study.round()
        content = study.requests()[0].content
        assert set(content) == {"arrays", "config", "extra"}
        request = wire.unpack_request(content)
        np.testing.assert_array_equal(request.extra["control"], study.strategy.memory["control"].numpy())
        np.testing.assert_array_equal(request.theta, study.theta)
        asked = study.strategy.configure_evaluate(1, study.arrays, ConfigRecord(), study.grid)
        assert {name for message in asked for name in message.content} == {"arrays", "config"}


class TestExtraArrays:
    """What a rule sends along with the weights, through the bytes of Flower's own serialisation."""

    LAYOUT = Layout(("w", "b"), ((2, 3), (2,)))
    THETA = np.linspace(-1.0, 1.0, 8, dtype=np.float32)

    def test_they_arrive_beside_the_weights(self) -> None:
        extra = {"control": self.THETA[::-1] * 3, "another": np.arange(8, dtype=np.float32)}
        arrays = wire.pack_arrays(self.LAYOUT.split(self.THETA))
        content = wire.pack_request(arrays, ConfigRecord(), 4, wants_update=True, extra=extra)
        found = wire.unpack_request(travelled(content))
        assert set(found.extra) == set(extra)
        for name, array in extra.items():
            np.testing.assert_array_equal(found.extra[name], array)
            assert found.extra[name].dtype == np.float32
        np.testing.assert_array_equal(found.theta, self.THETA)
        assert (found.layout, found.server_round, found.wants_update) == (self.LAYOUT, 4, True)

    @pytest.mark.parametrize("extra", [None, {}])
    def test_a_request_without_them_is_as_before(self, extra: dict[str, Any] | None) -> None:
        arrays = wire.pack_arrays(self.LAYOUT.split(self.THETA))
        plain = wire.pack_request(arrays, ConfigRecord(), 4, wants_update=True)
        content = wire.pack_request(arrays, ConfigRecord(), 4, wants_update=True, extra=extra)
        assert set(content) == {"arrays", "config"}
        assert content.deflate() == plain.deflate()
        assert wire.unpack_request(travelled(content)).extra == {}


class TestDrift:
    """Heterogeneous logistic regression, several local steps: FedAvg ends beside the optimum."""

    SETTINGS = ClientSettings(batch_size=100, local_epochs=5, weight_decay=0.1)
    EVEN = [shard(20, seed) for seed in range(10, 10 + NUM)]  # noqa: RUF012
    LR = 0.2

    def test_fedavg_has_a_bias_that_does_not_go_away(self) -> None:
        found = train_in_float64(FedAvg(), self.EVEN, self.SETTINGS, drawn(NUM, 150), self.LR)
        assert float((found.thetas[-1] - found.thetas[-20]).norm()) < 1e-6
        assert float((found.thetas[-1] - optimum(self.EVEN, 0.1)).norm()) > 0.1

    @pytest.mark.parametrize("shards", [EVEN, SHARDS], ids=["equal shards", "unequal shards"])
    @pytest.mark.parametrize(("count", "num_rounds"), [(NUM, 100), (2, 250)])
    def test_scaffold_reaches_the_optimum_of_the_mean_objective(
        self, shards: list[Split], count: int, num_rounds: int
    ) -> None:
        found = train_in_float64(SCAFFOLD(), shards, self.SETTINGS, drawn(count, num_rounds), self.LR)
        best = optimum(shards, 0.1)
        torch.testing.assert_close(found.thetas[-1], best, atol=1e-7, rtol=0)
        torch.testing.assert_close(found.memory["control"], torch.zeros_like(best), atol=1e-7, rtol=0)
        for client, data in enumerate(shards):
            expected = gradient(best, data, 0.1, linear)
            assert float(expected.norm()) > 0.1  # each client alone would go elsewhere
            torch.testing.assert_close(found.states[client]["control"], expected, atol=1e-6, rtol=0)


class TestRefusals:
    def test_momentum(self) -> None:
        with pytest.raises(ScenarioError, match=r"momentum; set client\.momentum = 0, got 0\.9") as caught:
            scenario_of("scaffold", momentum=0.9)
        assert "local_epochs" not in str(caught.value)

    def test_no_local_steps(self) -> None:
        with pytest.raises(ScenarioError, match=r"needs client\.local_epochs >= 1, got 0") as caught:
            scenario_of("scaffold", local_epochs=0)
        assert "momentum" not in str(caught.value)

    def test_both_at_once(self) -> None:
        with pytest.raises(ScenarioError, match=r"client\.momentum = 0") as caught:
            scenario_of("scaffold", momentum=0.5, local_epochs=0)
        assert "client.local_epochs >= 1" in str(caught.value)

    @pytest.mark.parametrize("report", ["steps", "lr"])
    def test_a_client_that_took_no_step_is_named(self, report: str) -> None:
        reports = {name: torch.ones(3, dtype=torch.float64) for name in ("steps", "lr", "control-norm")}
        reports[report] = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        cohort = replace(Cohort.of(torch.ones(3, 2), torch.zeros(3), None, **reports), clients=(4, 6, 9))
        with pytest.raises(ValueError, match="client 6 took no local step"):
            SCAFFOLD().direction(cohort, {})
