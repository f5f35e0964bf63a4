"""Which networks may be trained in a block, and what becomes of a block that fails."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import nn

from clients import app as client_app
from clients import cohort
from clients.app import LocalApp
from clients.resident import flat_network
from clients.steps import Client
from fedsim import wire
from fedsim.engine.desk import ArrayDesk
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.parameters import FlatNetwork
from fedsim.partitions.iid import Iid
from fedsim.scenario import Scenario
from fedsim.settings import ClientSettings
from fedsim.wire import Block
from tests.clients.hooks.networks import (
    WIDTH,
    Branching,
    Counting,
    Dropping,
    Filling,
    Headed,
    Recurrent,
    Scaled,
    dense,
)
from tests.test_determinism import scenario_of

CPU = torch.device("cpu")
DROPOUT = {"name": "tests.clients.hooks.networks:DropoutMlp"}


def behind(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(dense(), *layers)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: behind(nn.Dropout(0.2)), r"layer body\.1 \(Dropout\) draws random numbers"),
    "alpha dropout": (lambda: behind(nn.AlphaDropout(0.2)), r"layer body\.1 \(AlphaDropout\) draws"),
    "dropout in a function": (lambda: behind(Dropping()), r"layer body\.1 \(Dropping\).*random"),
    "random slopes": (lambda: behind(nn.RReLU()), r"layer body\.1 \(RReLU\)"),
    "recurrent": (Recurrent, r"layer body\.lstm \(LSTM\) runs in code that torch.func cannot map"),
    "buffer": (lambda: behind(Scaled()), r"buffer body\.1\.scale is part of the network but no parameter"),
    "running statistics": (
        lambda: behind(
            nn.Unflatten(1, (WIDTH, 1)), nn.InstanceNorm1d(WIDTH, track_running_stats=True), nn.Flatten()
        ),
        r"buffer body\.2\.running_mean is part of the network",
    ),
    "counter": (lambda: behind(Counting()), r"layer body\.1 \(Counting\).*in-place"),
    "written in place": (lambda: behind(Filling()), r"layer body\.1 \(Filling\).*inplace"),
    "branch on data": (lambda: behind(Branching()), r"layer body\.1 \(Branching\)"),
}

ALLOWED: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "no dropout": lambda: behind(nn.Dropout(0.0)),
    "activation in place": lambda: behind(nn.ReLU(inplace=True)),
    "normalised layers": lambda: behind(nn.LayerNorm(WIDTH), nn.GroupNorm(2, WIDTH)),
}


def built(make: Callable[[], nn.Module]) -> FlatNetwork:
    torch.manual_seed(0)
    return FlatNetwork(Headed(make()), CPU)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4


class TestNetworks:
    @pytest.mark.parametrize("kind", REFUSED)
    def test_a_network_that_a_block_cannot_share_is_refused_by_the_layer(self, kind: str) -> None:
        make, said = REFUSED[kind]
        model = built(make)
        reason = cohort.misfit(model, *batch())
        assert reason is not None
        assert re.search(said, reason), reason
        for asked in ("auto", "stacked"):
            chosen, _, why = cohort.choose(model, ClientSettings(cohort=asked), *batch(), 100)  # type: ignore[arg-type]
            assert (chosen, why) == ("each", reason)

    @pytest.mark.parametrize("kind", ALLOWED)
    def test_others_are_not(self, kind: str) -> None:
        model = built(ALLOWED[kind])
        assert cohort.misfit(model, *batch()) is None
        assert cohort.choose(model, ClientSettings(cohort="stacked"), *batch(), 100)[0] == "stacked"
        assert cohort.choose(model, ClientSettings(cohort="each"), *batch(), 100)[0] == "each"

    def test_the_trial_leaves_the_network_as_it_was(self) -> None:
        model = built(dense)
        before = model.theta.clone()
        cohort.misfit(model, *batch())
        assert torch.equal(model.theta, before)
        assert not model.grad.any()
        assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.network.modules())

    def test_on_a_cpu_blocks_are_for_many_clients_with_small_dense_networks(self) -> None:
        assert cohort.pays(built(dense), 64, 100)
        assert not cohort.pays(built(dense), 2, 100)
        assert not cohort.pays(built(dense), 64, 10)
        convolves = built(lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 1), nn.Flatten(), dense()))
        assert not cohort.pays(convolves, 64, 100)

    def test_a_cohort_is_never_one_block_on_a_cpu(self) -> None:
        x, _ = batch()
        assert [cohort.block_size(built(dense), x, count) for count in (1, 10, 33, 10**6)] == [
            1,
            5,
            17,
            cohort.MOST_ON_CPU,
        ]

    def test_a_scenario_that_asks_for_blocks_is_told_why_not(self, federation: Federation) -> None:
        with pytest.raises(ScenarioError) as caught:
            LocalApp(scenario(model=DROPOUT, cohort="stacked"), federation)
        (said,) = caught.value.problems
        assert said.startswith(
            'client.cohort: "stacked" is not possible with networks: layer body.2 (Dropout) draws'
        )
        assert said.endswith('use "each"')
        assert LocalApp(scenario(model=DROPOUT, cohort="auto"), federation).scenario.client.cohort == "each"
        few = scenario(cohort="auto")
        assert LocalApp(few, federation).scenario.client.cohort == "each"
        assert federation.num_clients < cohort.WORTH_BLOCKS

    @pytest.mark.parametrize("how", ["each", "stacked", "auto"])
    def test_batch_normalisation_is_refused_altogether(self, how: str, federation: Federation) -> None:
        model = {"name": "tests.clients.hooks.networks:NormedMlp"}
        with pytest.raises(ScenarioError, match=r"layer body\.2 is BatchNorm1d, whose statistics mix"):
            LocalApp(scenario(model=model, cohort=how), federation).check()


@pytest.fixture(scope="module")
def federation() -> Federation:
    made = scenario_of("fedavg")
    return Federation.build(made.data, made.partition, made.seed, Path())


def scenario(model: Any = None, hooks: Any = (), **client: Any) -> Scenario:
    settings = {"batch_size": 16, "lr": 0.1, "hooks": list(hooks), **client}
    return scenario_of("fedavg", client=settings, **({} if model is None else {"model": model}))


def halves(size: int, most: int) -> list[int]:
    """Sizes that are tried, in order, until none is larger than what goes through."""
    if size <= most:
        return [size]
    return [size, *halves(size // 2, most), *halves(size - size // 2, most)]


def answer(app: LocalApp, federation: Federation, units: Sequence[Sequence[int]], kind: str = "train") -> Block:
    """What clients answer in round 1 to the initial weights."""
    network = flat_network(app.scenario, federation, CPU)
    split = network.layout.split(network.theta.numpy())
    request = wire.pack_request(wire.pack_arrays(split), ConfigRecord(), 1, wants_update=True)
    count = sum(len(unit) for unit in units)
    desk = ArrayDesk(count)
    return desk.signed(app.run(kind, request, units, [{}] * count, desk)[0])


def by_client(block: Block, column: str) -> dict[int, float]:
    return dict(zip(block.clients, block.numbers[column].tolist(), strict=True))


class TestDropout:
    @pytest.mark.parametrize("hooks", [[], ["cmi"], ["distill"]], ids=str)
    def test_it_depends_on_the_client_and_the_round_alone(self, hooks: Any, federation: Federation) -> None:
        made = scenario(DROPOUT, hooks, cohort="each")
        found = {}
        for place, order in enumerate([[0, 1, 2, 3], [3, 1, 0, 2], [2]]):
            torch.manual_seed(place)
            torch.rand(place)
            state = torch.get_rng_state()
            block = answer(LocalApp(made, federation), federation, [[client] for client in order])
            assert torch.equal(torch.get_rng_state(), state)  # and the global generator is left alone
            assert block.updates is not None
            for client, update in zip(block.clients, block.updates, strict=True):
                assert np.array_equal(found.setdefault(client, update), update)
        assert not np.array_equal(found[0], found[1])

    def test_it_is_on_in_training(self, federation: Federation) -> None:
        dropped, whole = (
            answer(LocalApp(scenario({**DROPOUT, "p": p}, cohort="each"), federation), federation, [[0]])
            for p in (0.5, 0.0)
        )
        assert dropped.updates is not None
        assert whole.updates is not None
        assert np.linalg.norm(dropped.updates - whole.updates) > 0.1 * np.linalg.norm(whole.updates)

    def test_it_is_off_in_evaluation_and_in_the_losses_reported(self, federation: Federation) -> None:
        app = LocalApp(scenario(DROPOUT, cohort="each"), federation)
        training, evaluation = (answer(app, federation, [[0], [1]], kind) for kind in ("train", "evaluate"))
        network = flat_network(app.scenario, federation, CPU)
        network.network.eval()
        for client in (0, 1):
            shard = federation.client(client)
            for split, found in (
                (shard.train, by_client(training, "loss")),
                (shard.test, by_client(evaluation, "test_loss")),
            ):
                loss = nn.functional.cross_entropy(network.outputs(split.x).logits, split.y)
                assert found[client] == pytest.approx(float(loss.detach()), rel=1e-5)


class TestUnits:
    @pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
    def test_blocks_are_a_partition_of_balanced_size_whatever_the_order(
        self, size: int, federation: Federation
    ) -> None:
        app = LocalApp(scenario(cohort="stacked", block_size=size), federation)
        for asked in ([0, 1, 2, 3, 4, 5, 6, 7], [6, 1, 4, 3, 0], [5]):
            units = app.units("train", asked)
            assert sorted(itertools.chain(*units)) == sorted(asked)
            lengths = [len(unit) for unit in units]
            assert max(lengths) <= size
            assert max(lengths) - min(lengths) <= 1
            assert len(units) == -(-len(asked) // size)  # and no more of them than needed
            for order in (asked[::-1], sorted(asked)):
                assert app.units("train", order) == units
            # Clients with about as many steps are together: sizes fall from unit to unit.
            sizes = [int(federation.train_sizes[client]) for unit in units for client in unit]
            assert sizes == sorted(sizes, reverse=True)

    def test_clients_of_one_size_are_in_the_order_of_their_numbers(self) -> None:
        even = scenario(cohort="stacked", block_size=3).model_copy(update={"partition": Iid(num_clients=8)})
        made = Federation.build(even.data, even.partition, even.seed, Path())
        assert len(set(made.train_sizes.tolist())) < 8
        app = LocalApp(even, made)
        assert app.units("train", range(8)) == app.units("train", [5, 2, 7, 0, 1, 6, 4, 3])

    def test_each_client_is_a_unit_of_its_own(self, federation: Federation) -> None:
        assert LocalApp(scenario(cohort="each"), federation).units("train", [4, 2]) == [[4], [2]]


class TestFailures:
    @pytest.fixture
    def app(self, federation: Federation) -> LocalApp:
        return LocalApp(scenario(hooks=["cmi", "fed_it"], cohort="stacked", block_size=8), federation)

    @pytest.mark.parametrize("most", [1, 2, 3, 5])
    def test_a_block_that_does_not_fit_goes_through_in_halves(
        self, most: int, app: LocalApp, federation: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = answer(app, federation, [list(range(8))])
        tried, fit = [], client_app.fit_stacked

        def short_of_memory(model: Any, theta: Any, pool: Any, clients: Sequence[Client], work: Any) -> Any:
            tried.append(len(clients))
            if len(clients) > most:
                raise RuntimeError("out of memory")
            return fit(model, theta, pool, clients, work)

        monkeypatch.setattr(client_app, "fit_stacked", short_of_memory)
        halved = answer(app, federation, [list(range(8))])
        assert tried == halves(8, most)
        assert halved.errors == {}
        assert halved.clients == whole.clients == tuple(range(8))
        assert whole.updates is not None
        assert halved.updates is not None
        np.testing.assert_allclose(halved.updates, whole.updates, rtol=1e-4, atol=1e-6)
        assert list(halved.numbers) == list(whole.numbers)
        for name, column in whole.numbers.items():
            if name != "block":
                np.testing.assert_allclose(halved.numbers[name], column, rtol=1e-4, atol=1e-6, err_msg=name)
        assert (whole.numbers["block"] == 8).all()
        assert 1 <= halved.numbers["block"].max() <= most  # what was done is on record

    def test_a_block_that_ran_out_of_memory_is_not_tried_again(
        self, app: LocalApp, federation: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried, fit = [], client_app.fit_stacked

        def short_of_memory(model: Any, theta: Any, pool: Any, clients: Sequence[Client], work: Any) -> Any:
            tried.append(len(clients))
            if len(clients) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return fit(model, theta, pool, clients, work)

        monkeypatch.setattr(client_app, "fit_stacked", short_of_memory)
        first, second = (answer(app, federation, [list(range(8))]) for _ in range(2))
        assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
        assert first.errors == second.errors == {}
        np.testing.assert_array_equal(first.updates, second.updates)

    @pytest.mark.parametrize("bad", [0, 5, 7])
    def test_one_bad_client_is_named_and_the_others_succeed(
        self, bad: int, app: LocalApp, federation: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, fit = answer(app, federation, [list(range(8))]), client_app.fit_stacked
        first = int(federation.train_offsets[bad])

        def failing(model: Any, theta: Any, pool: Any, clients: Sequence[Client], work: Any) -> Any:
            if any(client.rows.start == first for client in clients):
                raise RuntimeError("no luck")
            return fit(model, theta, pool, clients, work)

        monkeypatch.setattr(client_app, "fit_stacked", failing)
        block = answer(app, federation, [list(range(8))])
        assert block.errors == {bad: "RuntimeError: no luck"}
        assert block.updates is not None
        assert whole.updates is not None
        good = [client for client in range(8) if client != bad]
        np.testing.assert_allclose(block.updates[good], whole.updates[good], rtol=1e-4, atol=1e-6)
        assert np.isfinite(block.numbers["loss"][good]).all()
        assert np.isnan(block.numbers["loss"][bad])

    def test_what_the_bad_client_kept_stays_as_it_was(
        self, app: LocalApp, federation: Federation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any) -> Any:
            raise RuntimeError("no luck")

        monkeypatch.setattr(client_app, "fit_stacked", failing)
        network = flat_network(app.scenario, federation, CPU)
        arrays = wire.pack_arrays(network.layout.split(network.theta.numpy()))
        request = wire.pack_request(arrays, ConfigRecord(), 1, wants_update=True)
        before: list[Any] = [{"fed_it.centroids": np.eye(10, dtype=np.float32)}, {}]
        block, kept = app.run("train", request, [[0, 1]], before, ArrayDesk(2))
        assert set(block.errors) == {0, 1}
        assert kept == before
