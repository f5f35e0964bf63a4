"""Ditto: FedAvg's model untouched, a model of each client's own beside it, and evaluation on those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor
from torch.nn.functional import cross_entropy

import clients.client_app
from clients.app import LocalApp
from fedsim import seeds
from fedsim.engine.base import BlockGrid
from fedsim.engine.flower import give_id
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, ScenarioError
from fedsim.settings import EngineSettings
from fedsim.wire import pack_request, unpack_arrays, unpack_state
from tests.clients.methods import (
    NUM_CLIENTS,
    PER_ROUND,
    Study,
    assert_same_states,
    federation,
    kept,
    linear,
    scenario_of,
    slow_sgd,
)

CLIENTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"local_epochs": 2, "momentum": 0.5, "weight_decay": 0.1, "clip_norm": 1.0},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def own_models(study: Study) -> dict[int, Tensor]:
    """Copies of the clients' own models."""
    return {client: torch.from_numpy(state["personal"]) for client, state in kept(study.grid).items()}


def score(w: Tensor, client: int) -> tuple[float, float]:
    """Accuracy and loss of a model on one client's test shard."""
    data = federation().client(client).test
    logits = linear(w.double(), data.x.double())
    return float((logits.argmax(dim=1) == data.y).double().mean()), float(cross_entropy(logits, data.y))


@pytest.mark.parametrize("client", CLIENTS.values(), ids=list(CLIENTS))
@pytest.mark.parametrize("options", [{}, {"lam": 0.0}, {"lam": 5.0, "personal_epochs": 3}])
def test_the_shared_model_has_fedavgs_bits(options: dict[str, Any], client: dict[str, Any]) -> None:
    plain, study = Study("fedavg", **client), Study({"name": "ditto", **options}, **client)
    for _ in range(3):
        expected, found = plain.round(), study.round()
        for number, (answer, update) in expected.items():
            assert np.array_equal(found[number][1], update)
            assert answer.numbers.items() <= found[number][0].numbers.items()
        assert np.array_equal(study.theta, plain.theta)
        served, numbers = plain.evaluate(), study.evaluate()
        for number in range(NUM_CLIENTS):
            assert numbers[number]["server_accuracy"] == served[number]["test_accuracy"]
            assert numbers[number]["server_loss"] == served[number]["test_loss"]


@pytest.mark.parametrize("epochs", [None, 3])
@pytest.mark.parametrize("lam", [0.0, 0.8])
@pytest.mark.parametrize("client", CLIENTS.values(), ids=list(CLIENTS))
def test_own_models_are_trained_on_over_the_participations_of_a_client(
    client: dict[str, Any], lam: float, epochs: int | None
) -> None:
    """With lam = 0 that is local training alone: after the first participation the server has no say."""
    options = {"name": "ditto", "lam": lam, **({} if epochs is None else {"personal_epochs": epochs})}
    study = Study(options, **client)
    settings = study.scenario.client
    expected: dict[int, Tensor] = {}
    participations = dict.fromkeys(range(NUM_CLIENTS), 0)
    for number in range(1, 7):
        theta = torch.from_numpy(study.theta)
        for k in study.round():
            data = federation().client(k).train
            batches = seeds.generator(study.scenario.seed, "batches", number, k)
            for _ in range(settings.local_epochs):
                torch.randperm(len(data), generator=batches)  # the local model's epochs

            def near(w: Tensor, theta: Tensor = theta) -> Tensor:
                return 0.5 * lam * (w - theta).square().sum()

            start = expected.get(k, theta)
            expected[k] = slow_sgd(start, data, settings, batches, near, lr=0.1, epochs=epochs, logits=linear)
            participations[k] += 1
        found = own_models(study)
        assert set(found) == set(expected)
        for k, own in found.items():
            torch.testing.assert_close(own, expected[k], atol=2e-5, rtol=1e-4)
    assert min(participations.values()) < max(participations.values()) > 2


def test_a_strong_pull_keeps_own_models_near_the_shared_one() -> None:
    """lam times lr is 1 at the last: a step then starts from theta whatever came before."""
    distances = []
    for lam in (0.0, 1.0, 4.0, 10.0):
        study = Study({"name": "ditto", "lam": lam, "personal_epochs": 2})
        for _ in range(2):
            theta = torch.from_numpy(study.theta)
            trained = study.round()
        found = {k: float((own - theta).norm()) for k, own in own_models(study).items() if k in trained}
        reported = {k: answer.numbers["personal-distance"] for k, (answer, _) in trained.items()}
        assert reported == pytest.approx(found, rel=1e-4)
        distances.append(max(found.values()))
    assert all(before > 1.2 * after > 0 for before, after in pairwise(distances))
    # A gradient of the cross entropy of linear logits is no longer than sqrt(2) (1 + ||x||).
    longest = 1 + float(federation().train.x.flatten(1).norm(dim=1).max())
    assert distances[-1] < 0.1 * np.sqrt(2) * longest


def test_what_a_client_keeps_waits_for_its_next_round() -> None:
    study = Study("ditto")
    waited = False
    for _ in range(6):
        before = kept(study.grid)
        trained = study.round()
        after = kept(study.grid)
        assert set(after) == set(before) | set(trained)
        absent = {k: state for k, state in before.items() if k not in trained}
        assert_same_states({k: after[k] for k in absent}, absent)
        for k in set(before) & set(trained):
            assert not np.array_equal(after[k]["personal"], before[k]["personal"])
        waited |= bool(absent)
        study.evaluate()
        study.losses()
        assert_same_states(kept(study.grid), after)
    assert waited


class TestEvaluation:
    def check(self, study: Study, numbers: Mapping[int, Mapping[str, float]]) -> None:
        own, theta = own_models(study), torch.from_numpy(study.theta)
        assert 0 < len(own) < NUM_CLIENTS
        for k, found in numbers.items():
            accuracy, loss = score(own.get(k, theta), k)
            assert found["test_accuracy"] == pytest.approx(accuracy, abs=1e-9)
            assert found["test_loss"] == pytest.approx(loss, rel=1e-4)
            accuracy, loss = score(theta, k)
            assert found["server_accuracy"] == pytest.approx(accuracy, abs=1e-9)
            assert found["server_loss"] == pytest.approx(loss, rel=1e-4)
            if k in own:
                assert abs(found["test_loss"] - found["server_loss"]) > 1e-3
            else:
                assert found["test_loss"] == found["server_loss"]

    def test_it_is_about_own_models_where_there_are_any(self) -> None:
        study = Study({"name": "ditto", "lam": 0.1, "personal_epochs": 5})
        first = study.evaluate()
        assert sorted(first) == list(range(NUM_CLIENTS))
        for found in first.values():
            assert (found["test_accuracy"], found["test_loss"]) == (found["server_accuracy"], found["server_loss"])
        for _ in range(3):
            study.round()
            numbers = study.evaluate()
            assert sorted(numbers) == list(range(NUM_CLIENTS))
            self.check(study, numbers)

    def test_asking_some_clients_gives_the_same_numbers(self) -> None:
        study = Study({"name": "ditto", "personal_epochs": 5})
        study.round()
        every = study.evaluate()
        sent = list(study.strategy.configure_evaluate(1, study.arrays, ConfigRecord(), study.grid))
        for nodes in ([2], [7, 1, 4]):
            replies = study.grid.send_and_receive([sent[node - 1] for node in nodes])
            for node, reply in zip(nodes, replies, strict=True):
                assert {**next(iter(reply.content.metric_records.values()))} == every[node - 1]

    def test_the_servers_means_are_over_own_models(self) -> None:
        study = Study({"name": "ditto", "lam": 0.0, "personal_epochs": 5})
        study.round()
        numbers = study.evaluate()
        sent = study.strategy.configure_evaluate(1, study.arrays, ConfigRecord(), study.grid)
        means = study.strategy.aggregate_evaluate(1, study.grid.send_and_receive(sent))
        assert means is not None
        sizes = federation().test_sizes
        for name in ("test_accuracy", "test_loss"):
            expected = np.average([numbers[k][name] for k in range(NUM_CLIENTS)], weights=sizes)
            assert means[name] == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "feddyn"])
    def test_other_methods_have_one_model(self, strategy: str) -> None:
        study = Study(strategy)
        study.round()
        theta = torch.from_numpy(study.theta)
        for k, found in study.evaluate().items():
            assert {name for name in found if name.startswith("server_")} == set()
            assert found["test_loss"] == pytest.approx(score(theta, k)[1], rel=1e-4)


class TestFlowersClientApp:
    """Stock Flower hands one message at a time, and keeps what a client keeps in its context."""

    @pytest.mark.parametrize("strategy", ["scaffold", "feddyn", "ditto"])
    def test_it_gives_the_bits_of_the_grid(self, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
        study = Study(strategy)
        local = LocalApp(study.scenario, federation())
        monkeypatch.setattr(clients.client_app, "_app_of", lambda *_: local)
        run_config: Any = {"scenario": "", "overrides": ""}
        contexts = [
            Context(1, k + 1, {"partition-id": k}, RecordDict(), cast(Any, run_config)) for k in range(NUM_CLIENTS)
        ]

        def ask(message: Message) -> Message:
            give_id(message)
            handle = (
                clients.client_app.train
                if message.metadata.message_type == "train"
                else clients.client_app.evaluate_client
            )
            return handle(message, contexts[message.metadata.dst_node_id - 1])

        for _ in range(4):
            replies = {message.metadata.dst_node_id - 1: ask(message) for message in study.requests()}
            for k, (_, update) in study.round().items():
                (sent,) = replies[k].content.array_records.values()
                assert np.array_equal(unpack_arrays(sent)["update"], update)
            states = {k: unpack_state(context.state) for k, context in enumerate(contexts)}
            assert_same_states({k: state for k, state in states.items() if state}, kept(study.grid))
            content = pack_request(study.arrays, ConfigRecord(), study.number, wants_update=False)
            for k, numbers in study.evaluate().items():
                reply = ask(Message(content, dst_node_id=k + 1, message_type="evaluate"))
                (record,) = reply.content.metric_records.values()
                assert isinstance(record, MetricRecord)
                assert {**record} == numbers
            assert_same_states({k: unpack_state(contexts[k].state) for k in states}, states)


class TestOtherClients:
    """Clients that train as FedAvg's do would spoil the study without a word."""

    @pytest.mark.parametrize(
        ("strategy", "report"),
        [
            ("fedprox", "proximal"),
            ("scaffold", "control-norm"),
            ("feddyn", "linear-norm"),
            ("ditto", "personal-distance"),
        ],
    )
    def test_those_that_do_not_know_their_half_are_refused(self, strategy: str, report: str) -> None:
        plain = LocalGrid(LocalApp(scenario_of("fedavg"), federation()))
        with pytest.raises(ClientError, match=f'it sent no "{report}", which .* needs'):
            Study(strategy, plain).round()
        assert len(Study(strategy).round()) == PER_ROUND


class TestScenario:
    def test_without_local_steps_there_is_no_own_model(self) -> None:
        with pytest.raises(ScenarioError, match=r"strategy\.lam: .*client\.local_epochs >= 1, got 0"):
            scenario_of("ditto", local_epochs=0)

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [("lam", -1.0, "must be at least 0"), ("personal_epochs", 0, "must be greater than 0")],
    )
    def test_impossible_options_are_refused(self, option: str, value: float, words: str) -> None:
        with pytest.raises(ScenarioError, match=rf"strategy\.{option}: {words}"):
            scenario_of({"name": "ditto", option: value})


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[Any]:
    """One Ray grid that can be given another application: workers start slowly."""
    from fedsim.engine.grid import RayGrid

    grid = RayGrid(LocalApp(scenario_of("ditto"), federation()), EngineSettings(workers=3))

    def use(app: LocalApp) -> RayGrid:
        grid.change(app)
        return grid

    yield use
    grid.close()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedprox", "scaffold", "feddyn", "ditto"])
def test_ray_workers_give_the_bits_of_one_process(strategy: str, workers: Any) -> None:
    """A client's state and the server's extra arrays reach whichever worker is next."""
    here = Study(strategy)
    grid: BlockGrid = workers(LocalApp(here.scenario, federation()))
    there = Study(strategy, grid)
    for _ in range(4):
        expected, found = here.round(), there.round()
        assert list(found) == list(expected)
        for k, (answer, update) in expected.items():
            assert found[k][0] == answer
            assert np.array_equal(found[k][1], update)
        assert np.array_equal(there.theta, here.theta)
        assert_same_states(kept(there.grid), kept(here.grid))
        assert there.evaluate() == here.evaluate()
        assert there.losses() == here.losses()
    states = kept(here.grid)
    assert (len(states) > PER_ROUND) == (strategy != "fedprox")
