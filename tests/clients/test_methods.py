"""Clients' halves of algorithms against explicit objectives trained with autograd and torch.optim in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clients import app as client_app
from clients.methods import LocalMethod
from clients.methods.feddyn import DynamicRegularizer
from clients.methods.personal import Personal
from clients.methods.proximal import Proximal
from clients.methods.scaffold import ControlVariate
from clients.training import Fit, fit_each
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.parameters import FlatNetwork
from fedsim.settings import ClientSettings
from tests.clients.methods import (
    NUM_CLIENTS,
    PER_ROUND,
    Extra,
    Study,
    Vectors,
    assert_equal,
    assert_same_states,
    federation,
    fit,
    gradient,
    kept,
    linear,
    nothing,
    objective,
    pull,
    shard,
    slow_sgd,
    stream,
    vector,
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """A second thread costs tensors of this size more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
