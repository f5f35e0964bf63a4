"""Flower's own strategies: privacy wrappers, memories, and clients that fail."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message

from clients.app import LocalApp
from fedsim import checkpoint
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, RoundError
from fedsim.server_app import strategy_of
from fedsim.wire import pack_arrays
from strategies.stock import StockStrategy
from tests.strategies.replies import BAD, START, WEIGHTS, answer, flat, grid_of, numbers
from tests.strategies.stock_studies import (
    FIXED,
    NAMED,
    REMEMBERING,
    Study,
    federation,
    global_states,
    round_of,
    scenario_of,
    single,
    start,
    weights,
)


def private(noise: float = 0.0, clip: float = 1.0, inner: Mapping[str, Any] | None = None) -> dict[str, Any]:
    inner = {"name": "flwr:FedAvg"} if inner is None else inner
    return {"name": FIXED, "noise_multiplier": noise, "clipping_norm": clip, "strategy": inner}


class TestPrivacy:
    @pytest.mark.parametrize("inner", [{"name": "flwr:FedAvg"}, {"name": "fedavg"}], ids=["theirs", "ours"])
    def test_updates_are_clipped(self, inner: dict[str, Any]) -> None:
        def one(clip: float) -> np.ndarray:
            return round_of(single(private(clip=clip, inner=inner)), answer_of(10.0)) - START

        loose, tight = one(1e6), one(0.5)
        np.testing.assert_allclose(loose, np.full(4, -10.0), rtol=1e-5)
        np.testing.assert_allclose(tight, np.full(4, -0.25), rtol=1e-5)  # norm 0.5 in four dimensions

    def test_the_noise_has_flowers_scale_and_comes_from_the_seed(self) -> None:
        quiet, noisy, again = (Study(private(noise), rounds=1) for noise in (0.0, 2.0, 2.0))
        noise = noisy.model - quiet.model
        # sigma = noise_multiplier * clipping_norm / clients; about 1,800 parameters give it to 2 %.
        assert noise.std() == pytest.approx(2.0 * 1.0 / 5, rel=0.08)
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(len(noise))
        np.testing.assert_array_equal(noisy.model, again.model)

    def test_every_round_and_seed_has_noise_of_its_own(self) -> None:
        def noise(server_round: int, seed: int) -> np.ndarray:
            strategy = single(private(1.0))
            strategy.seed = seed
            return round_of(strategy, answer_of(1.0), server_round)

        drawn = [noise(1, 0), noise(2, 0), noise(1, 1)]
        np.testing.assert_array_equal(noise(1, 0), drawn[0])
        assert not np.isclose(drawn[0], drawn[1]).any()
        assert not np.isclose(drawn[0], drawn[2]).any()

    def test_the_adaptive_norm_goes_on_record(self) -> None:
        norms = [finished.info["clipping_norm"] for finished in Study(NAMED["DP adaptive"], rounds=3).rounds[1:]]
        assert len(set(norms)) == 3

    def test_the_log_says_when_no_epsilon_can_be_claimed(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="fedsim"):
            single(private()).summary()
            single(NAMED["FedAvg"]).summary()
        assert [record.message.split(":")[1] for record in caplog.records] == [FIXED.split(":")[1]]

    def test_a_client_that_learned_nothing_is_named(self) -> None:
        def make(message: Message, client: int) -> Message:
            return weights(message, START if client == 2 else START + 1.0)

        with pytest.raises(ClientError, match="client 2, round 1: its update is zero"):
            round_of(single(private()), make)
        np.testing.assert_array_equal(
            round_of(single(NAMED["FedMedian"]), make), START + 1.0
        )  # elsewhere it is an answer like any other

    def test_another_number_of_clients_than_the_noise_is_scaled_to_is_refused(self) -> None:
        strategy = single(private())
        strategy.clients_per_round = 4
        with pytest.raises(RoundError, match=r"round 1: strategy.num_sampled_clients: must be 4.*got 5"):
            strategy.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of())  # before anybody trains


def answer_of(value: float) -> Any:
    return lambda message, _: answer(message, [value] * len(START))


class TestMemory:
    @pytest.mark.parametrize("name", REMEMBERING)
    def test_a_memory_read_from_a_file_after_every_round_changes_no_bit(self, name: str, tmp_path: Path) -> None:
        scenario = scenario_of(NAMED[name])
        grid = LocalGrid(LocalApp(scenario, federation()))
        through, model = strategy_of(scenario), start(scenario)
        forgetful = restarted = model
        for number in (1, 2, 3, 4):
            model = self.step(through, number, model, grid)
            fresh = strategy_of(scenario)
            if number > 1:
                fresh.memory = checkpoint.load(tmp_path / "memory")
            restarted = self.step(fresh, number, restarted, grid)
            checkpoint.save(tmp_path / "memory", fresh.memory)
            forgetful = self.step(strategy_of(scenario), number, forgetful, grid)
            np.testing.assert_array_equal(flat(restarted), flat(model))
        assert not np.array_equal(flat(forgetful), flat(model))

    @staticmethod
    def step(strategy: Any, number: int, arrays: ArrayRecord, grid: LocalGrid) -> ArrayRecord:
        sent = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        after, _ = strategy.aggregate_train(number, grid.send_and_receive(sent))
        assert isinstance(after, ArrayRecord)
        return after

    def test_a_rule_inside_a_wrapper_keeps_its_own(self, tmp_path: Path) -> None:
        study = Study({**private(), "strategy": {"name": "fedmdfg"}})
        checkpoint.save(tmp_path / "memory", study.strategy.memory)
        kept = checkpoint.load(tmp_path / "memory")
        fresh = strategy_of(study.scenario)
        fresh.memory = kept
        assert isinstance(fresh, StockStrategy)
        inside = fresh.inner.strategy  # type: ignore[attr-defined]
        assert inside.memory.keys() == study.strategy.inner.strategy.memory.keys()  # type: ignore[union-attr]
        assert inside.memory

    def test_a_memory_is_a_copy(self) -> None:
        study = Study(NAMED["FedAdam"])
        kept = study.strategy.memory
        for tensor in kept["m_t"].values():
            tensor.fill_(7.0)
        assert not any((array == 7.0).any() for array in study.strategy.inner.m_t.values())  # type: ignore[union-attr]

    @pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "Krum"])
    def test_a_strategy_without_memory_has_none(self, name: str) -> None:
        assert Study(NAMED[name]).strategy.memory == {}

    def test_what_no_checkpoint_can_hold_is_named(self) -> None:
        strategy = single(NAMED["FedAvg"])
        strategy.inner.ledger = object()  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="ledger: object is no plain data"):
            _ = strategy.memory


class TestFailures:
    @pytest.mark.parametrize("kind", [kind for kind in BAD if "loss" not in kind])
    def test_a_bad_reply_stops_the_run_and_is_named(self, kind: str) -> None:
        make, said = BAD[kind]
        with pytest.raises(ClientError, match=f"^client 3, round 7: .*{said}"):
            round_of(single(NAMED["FedAvg"]), lambda m, k: make(m) if k == 3 else answer(m), 7)

    @pytest.mark.parametrize("kind", [kind for kind in BAD if "loss" in kind])
    def test_a_bad_loss_counts_where_the_loss_does(self, kind: str) -> None:
        make, said = BAD[kind]
        said = said.replace("which .* needs", "which flwr:QFedAvg needs")
        with pytest.raises(ClientError, match=f"^client 3, round 1: .*{said}"):
            round_of(single(NAMED["QFedAvg"]), lambda m, k: make(m) if k == 3 else answer(m))
        round_of(single(NAMED["FedAvg"]), lambda m, k: make(m) if k == 3 else answer(m))

    @pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedMedian", "QFedAvg", "Krum"])
    @pytest.mark.parametrize("kind", ["an update with NaN", "an update of another length", "an error"])
    def test_a_tolerated_failure_is_left_out_and_recorded(self, name: str, kind: str) -> None:
        options = {**NAMED[name]}
        options.pop("num_malicious_nodes", None)
        strategy = single(options, max_failures=2)
        found = round_of(strategy, lambda m, k: BAD[kind][0](m) if k in (1, 4) else answer(m))
        assert sorted(failure.client for failure in strategy.last.failures) == [1, 4]
        good = single(options)
        sent = list(good.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of()))
        expected, _ = good.aggregate_train(1, [answer(sent[k]) for k in (0, 2, 3)])
        assert expected is not None
        np.testing.assert_array_equal(found, flat(expected))

    def test_all_clients_failing_always_stops_the_run(self) -> None:
        with pytest.raises(ClientError, match="4 more clients failed"):
            round_of(single(NAMED["FedAvg"], max_failures=100), lambda m, _: BAD["an update with NaN"][0](m))

    def test_too_few_clients_left_for_the_strategy_stop_the_run(self) -> None:
        strategy = single(NAMED["Krum"], max_failures=1)
        round_of(strategy, lambda m, _: answer(m))
        with pytest.raises(RoundError, match=r"round 1: strategy.num_malicious_nodes: .* 2 \* 1 \+ 3 = 5 .* got 4"):
            round_of(strategy, lambda m, k: BAD["an error"][0](m) if k == 0 else answer(m))

    def test_a_model_out_of_the_finite_numbers_is_an_error_of_the_round(self) -> None:
        options = {"name": "flwr:FedAvgM", "server_learning_rate": 10.0}
        with pytest.raises(RoundError, match=r"round 1: flwr:FedAvgM left .* lower strategy.server_learning_rate"):
            round_of(single(options), answer_of(3e38))

    def test_an_error_of_flowers_names_the_round_and_the_strategy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        strategy = single(NAMED["FedMedian"])
        monkeypatch.setattr(strategy.inner, "aggregate_train", lambda *_: 1 / 0)
        before = global_states()
        with pytest.raises(RoundError, match=r"^round 1: flwr:FedMedian: ZeroDivisionError: division by zero"):
            round_of(strategy, answer_of(1.0))
        np.testing.assert_equal(global_states(), before)

    def test_a_strategy_that_gives_no_model_stops_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        strategy = single(NAMED["FedMedian"])
        monkeypatch.setattr(strategy.inner, "aggregate_train", lambda *_: (None, None))
        with pytest.raises(RoundError, match="round 1: flwr:FedMedian gave no model"):
            round_of(strategy, answer_of(1.0))

    def test_clients_without_examples_stop_the_run(self) -> None:
        def make(message: Message, client: int) -> Message:
            return answer(message, metrics={**numbers(client), "num-examples": 0})

        with pytest.raises(RoundError, match="no examples"):
            round_of(single(NAMED["FedAvg"]), make)

    def test_the_replies_are_left_as_they_came(self) -> None:
        """FedMedian takes them apart, a wrapper replaces their arrays; the run record still reads them."""
        for name in ("FedMedian", "DP fixed"):
            kept: list[Message] = []

            def make(message: Message, client: int, kept: list[Message] = kept) -> Message:
                kept.append(weights(message, START + 1.0))
                return kept[-1]

            round_of(single(NAMED[name]), make)
            for reply in kept:
                record = next(iter(reply.content.array_records.values()))
                np.testing.assert_array_equal(flat(record), START + 1.0)
