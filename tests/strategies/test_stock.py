"""Flower's own strategies on our clients: same draws, same bits, same checks as the platform's rules."""

from __future__ import annotations

import gc
import logging
import random
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from scipy.stats import trim_mean

from clients.app import LocalApp
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, RoundError
from fedsim.parameters import Layout
from fedsim.server_app import strategy_of
from fedsim.wire import pack_arrays
from strategies import stock_options
from tests.strategies.replies import START, WEIGHTS, flat, grid_of
from tests.strategies.stock_studies import (
    FIXED,
    NAMED,
    Study,
    federation,
    global_states,
    round_of,
    scenario_of,
    seed_globals,
    single,
    start,
    weights,
)
from tests.strategies.test_stock_alone import answer_of
from tests.test_determinism import workers

__all__ = ["workers"]  # a fixture


class TestEveryStrategy:
    def test_those_that_must_be_there_are(self) -> None:
        assert {str(options["name"]) for options in NAMED.values()} <= set(stock_options.names())

    @pytest.mark.parametrize("name", NAMED)
    def test_it_trains_to_the_same_bits_whatever_the_global_generators_say(self, name: str) -> None:
        seed_globals(1)
        first = Study(NAMED[name])
        before = seed_globals(2)
        second = Study(NAMED[name])
        np.testing.assert_equal(global_states(), before)
        np.testing.assert_array_equal(second.model, first.model)
        assert np.isfinite(first.model).all()
        assert np.abs(first.moved).max() > 1e-3
        assert {array.dtype for array in first.arrays.values()} == {np.dtype(np.float32)}
        assert all(not finished.failures for finished in first.rounds)

    def test_whatever_it_draws_comes_from_the_seed_and_the_round(self, monkeypatch: pytest.MonkeyPatch) -> None:
        strategy = single(NAMED["FedAvg"])

        def draw(*_: Any) -> tuple[ArrayRecord, None]:
            drawn = {"w": np.random.normal(size=3), "b": np.array([random.random()])}  # noqa: NPY002
            return pack_arrays(drawn), None

        monkeypatch.setattr(strategy.inner, "aggregate_train", draw)
        seed_globals(1)
        first, second = (round_of(strategy, answer_of(1.0), number) for number in (1, 2))
        seed_globals(2)
        np.testing.assert_array_equal(round_of(strategy, answer_of(1.0)), first)
        assert not np.isclose(first, second).any()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["FedTrimmedAvg", "FedProx", "DP around ours"])
    def test_any_number_of_workers_gives_the_bits_of_one_process(self, name: str, workers: Any) -> None:
        expected = Study(NAMED[name])
        for count in (1, 3):
            app = LocalApp(scenario_of(NAMED[name]), federation())
            np.testing.assert_array_equal(Study(NAMED[name], workers(app, count)).model, expected.model)

    @pytest.mark.parametrize("name", NAMED)
    def test_the_same_clients_are_drawn_as_for_our_rules(self, name: str) -> None:
        ours = Study({"name": "fedavg"}, rounds=4)
        assert len({tuple(clients) for clients in ours.clients}) > 1
        assert Study(NAMED[name], rounds=4).clients == ours.clients

    @pytest.mark.parametrize("name", NAMED)
    def test_the_order_of_the_replies_changes_no_bit(self, name: str) -> None:
        scenario = scenario_of(NAMED[name])
        models = []
        for step in (1, -1):
            strategy = strategy_of(scenario)
            grid = LocalGrid(LocalApp(scenario, federation()))
            sent = list(strategy.configure_train(1, start(scenario), ConfigRecord(), grid))
            arrays, _ = strategy.aggregate_train(1, list(grid.send_and_receive(sent))[::step])
            assert arrays is not None
            models.append(flat(arrays))
        np.testing.assert_array_equal(models[0], models[1])

    def test_the_collector_that_flower_runs_for_every_client_has_little_to_look_at(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []

        def count(*_: Any) -> tuple[None, None]:
            seen.append(len(gc.get_objects()))
            return None, None

        strategy = single(NAMED["QFedAvg"])
        monkeypatch.setattr(strategy.inner, "aggregate_train", count)
        with pytest.raises(RoundError):
            round_of(strategy, answer_of(1.0))
        assert seen[0] < len(gc.get_objects()) / 10
        assert gc.get_freeze_count() == 0

    def test_nothing_of_flowers_reaches_the_terminal_and_its_warnings_reach_the_log(
        self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with caplog.at_level(logging.INFO, logger="fedsim"):
            Study({"name": "flwr:FedProx"})
        printed = capfd.readouterr()
        assert "aggregate_train" not in printed.out + printed.err
        assert [record.message for record in caplog.records if "proximal_mu=0.0" in record.message]


class TestAgainstOurs:
    """The two add up in another precision, so they agree to rounding."""

    @pytest.mark.parametrize(
        ("theirs", "ours"),
        [
            ({"name": "flwr:FedAvg"}, {"name": "fedavg"}),
            ({"name": "flwr:FedAvgM"}, {"name": "fedavg"}),
            ({"name": "flwr:QFedAvg", "q": 0.7}, {"name": "qfedavg", "q": 0.7}),
            ({"name": "flwr:FedProx", "proximal_mu": 1.0}, {"name": "fedprox", "mu": 1.0}),
            (
                {
                    "name": FIXED,
                    "noise_multiplier": 0.0,
                    "clipping_norm": 1e6,
                    "strategy": {"name": "adafed", "gamma": 0.5},
                },
                {"name": "adafed", "gamma": 0.5},
            ),
        ],
        ids=["FedAvg", "FedAvgM", "QFedAvg", "FedProx", "DP that does nothing"],
    )
    def test_the_same_algorithm_gives_the_same_model(self, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        found, expected = Study(theirs, rounds=3), Study(ours, rounds=3)
        assert np.abs(expected.moved).max() > 1e-2
        np.testing.assert_allclose(found.model, expected.model, atol=2e-6, rtol=0)

    def test_fedprox_really_pulls(self) -> None:
        free, held = (Study({"name": "flwr:FedProx", "proximal_mu": mu}) for mu in (0.0, 10.0))
        assert np.linalg.norm(held.moved) < 0.9 * np.linalg.norm(free.moved)
        np.testing.assert_array_equal(free.model, Study({"name": "flwr:FedAvg"}).model)
        reported = [reply.numbers["proximal"] for reply in held.rounds[1].trained]
        assert min(reported) > 0

    def test_clients_that_do_not_know_the_proximal_term_are_refused(self) -> None:
        strategy = single(NAMED["FedProx"])
        with pytest.raises(ClientError, match='it sent no "proximal", which flwr:FedProx needs'):
            round_of(strategy, lambda m, _: weights(m, START))

    def test_a_rule_inside_a_wrapper_knows_the_whole_federation_and_its_server_rate(self) -> None:
        wrapped = {"name": FIXED, "noise_multiplier": 0.0, "clipping_norm": 1e6, "strategy": {"name": "fedmdfg"}}
        server = {"clients_per_round": 3, "lr": 0.5}
        found, expected = (Study(strategy, server=server) for strategy in (wrapped, {"name": "fedmdfg"}))
        assert found.clients == expected.clients
        assert found.rounds[2].info["num_trials"] == expected.rounds[2].info["num_trials"]  # it asked the clients
        np.testing.assert_allclose(found.model, expected.model, atol=2e-6, rtol=0)
        np.testing.assert_allclose(
            sorted(found.rounds[2].weights.values()), sorted(expected.rounds[2].weights.values()), rtol=1e-4
        )


class TestAgainstAnOracle:
    """What the strategies get is what the clients sent."""

    def models(self, count: int) -> np.ndarray:
        draws = np.random.default_rng(0).normal(size=(count, len(START)))
        return (START + draws).astype(np.float32)

    @pytest.mark.parametrize(
        ("options", "oracle"),
        [
            ({"name": "flwr:FedAvg"}, lambda rows: np.average(rows, axis=0, weights=np.arange(1, len(rows) + 1))),
            ({"name": "flwr:FedMedian"}, lambda rows: np.median(rows, axis=0)),
            ({"name": "flwr:FedTrimmedAvg", "beta": 0.3}, lambda rows: trim_mean(rows, 0.3, axis=0)),
        ],
        ids=["FedAvg", "FedMedian", "FedTrimmedAvg"],
    )
    def test_means(self, options: dict[str, Any], oracle: Any) -> None:
        rows = self.models(7)
        found = round_of(single(options, 7), lambda m, k: weights(m, rows[k]), num_clients=7)
        np.testing.assert_allclose(found, oracle(rows), atol=1e-6)

    def test_krum_takes_the_model_nearest_to_the_others(self) -> None:
        rows = self.models(6)
        rows[4] += 50.0  # the attacker
        squares = ((rows[:, None] - rows[None]) ** 2).sum(2)
        scores = np.sort(squares, axis=1)[:, 1:4].sum(1)  # n - f - 2 = 3 neighbours
        strategy = single({"name": "flwr:Krum", "num_malicious_nodes": 1}, 6)
        found = round_of(strategy, lambda m, k: weights(m, rows[k]), num_clients=6)
        np.testing.assert_array_equal(found, rows[scores.argmin()])

    def test_bulyan_is_not_moved_by_an_attacker(self) -> None:
        rows = self.models(7)
        rows[4] += 1e4
        strategy = single({"name": "flwr:Bulyan", "num_malicious_nodes": 1}, 7)
        found = round_of(strategy, lambda m, k: weights(m, rows[k]), num_clients=7)
        honest = np.delete(rows, 4, axis=0)
        assert (found >= honest.min(0)).all()
        assert (found <= honest.max(0)).all()

    def test_fedavgm_is_heavy_ball(self) -> None:
        options = {"name": "flwr:FedAvgM", "server_momentum": 0.5, "server_learning_rate": 0.1}
        strategy = single(options)
        shift = np.arange(1.0, 5.0)
        model = START
        for number, momentum in ((1, 1.0), (2, 1.5), (3, 1.75)):
            expected = model + 0.1 * momentum * shift
            named = pack_arrays(Layout.of(WEIGHTS).split(model.astype(np.float32)))
            sent = list(strategy.configure_train(number, named, ConfigRecord(), grid_of()))
            arrays, _ = strategy.aggregate_train(number, [weights(message, model + shift) for message in sent])
            assert arrays is not None
            model = flat(arrays)
            np.testing.assert_allclose(model, expected, atol=1e-5)
