"""RuleStrategy: sampling, checks of what clients send, failures, the server's step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

import strategies
import strategies.seeded
from fedsim.engine.flower import give_id
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, RoundError
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import AnyRule, Cohort, Direction, Rule
from strategies.rules.adafed import AdaFed
from strategies.rules.dqnfed import DQNFed
from strategies.rules.fedavg import FedAvg
from tests.engine.fakes import FakeApp
from tests.strategies.replies import (
    BAD,
    NUM_PARAMETERS,
    START,
    WEIGHTS,
    answer,
    flat,
    grid_of,
    numbers,
    round_of,
    with_metrics,
)


class TestSampling:
    def drawn(self, seed: int, server_round: int, nodes: list[int], count: int = 4) -> list[int]:
        class Nodes(LocalGrid):
            def get_node_ids(self) -> list[int]:
                return nodes

        strategy = RuleStrategy(FedAvg(), clients_per_round=count, seed=seed)
        sent = strategy.configure_train(server_round, pack_arrays(WEIGHTS), ConfigRecord(), Nodes(FakeApp(2)))
        return [message.metadata.dst_node_id for message in sent]

    def test_it_depends_on_seed_round_and_nodes_alone(self) -> None:
        nodes = list(range(1, 21))
        first = self.drawn(1, 3, nodes)
        torch.rand(7)
        self.drawn(1, 2, nodes)
        assert self.drawn(1, 3, nodes) == first
        assert self.drawn(1, 3, nodes[::-1]) == first  # in whatever order they connected
        assert self.drawn(2, 3, nodes) != first
        assert self.drawn(1, 4, nodes) != first

    def test_it_is_without_replacement_and_reaches_everyone_evenly(self) -> None:
        nodes = list(range(1, 11))
        counts = np.zeros(11)
        for number in range(1, 401):
            chosen = self.drawn(0, number, nodes, count=3)
            assert len(set(chosen)) == 3
            assert chosen == sorted(chosen)
            counts[chosen] += 1
        # Binomial with n = 400, p = 0.3: mean 120, standard deviation 9.2.
        assert np.abs(counts[1:] - 120).max() < 4.5 * 9.2

    def test_none_takes_all_or_a_fraction(self) -> None:
        def count(**options: Any) -> int:
            strategy = RuleStrategy(FedAvg(), **options)
            return len(list(strategy.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of(10))))

        assert count() == 10
        assert count(fraction_train=0.25) == 2
        assert count(fraction_train=0.01) == 1

    def test_evaluation_asks_every_client(self) -> None:
        strategy = RuleStrategy(FedAvg(), clients_per_round=1)
        sent = list(strategy.configure_evaluate(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of(6)))
        assert [message.metadata.dst_node_id for message in sent] == [1, 2, 3, 4, 5, 6]
        assert {message.metadata.message_type for message in sent} == {"evaluate"}

    def test_waiting_for_nodes_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(strategies.seeded, "WAIT_S", 0.0)
        strategy = RuleStrategy(FedAvg(), min_available_nodes=7)
        with pytest.raises(RoundError, match="5 of 7 nodes"):
            strategy.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of(5))


class TestStep:
    def test_the_step_is_the_rules_direction(self) -> None:
        expected = START - 0.5 * sum((k + 1) * (k + 1) for k in range(5)) / 15.0
        np.testing.assert_allclose(flat(round_of(RuleStrategy(FedAvg(), server_lr=0.5))), expected, rtol=1e-6)

    def test_names_and_shapes_are_kept(self) -> None:
        arrays = unpack_arrays(round_of(RuleStrategy(FedAvg())))
        assert {name: array.shape for name, array in arrays.items()} == {"w": (3,), "b": (1,)}
        assert all(array.dtype == np.float32 for array in arrays.values())

    def test_the_server_learning_rate_decays_from_the_second_round(self) -> None:
        strategy = RuleStrategy(FedAvg(), server_lr=0.8, server_lr_decay=0.5)
        assert [strategy.lr(number) for number in (1, 2, 3)] == [0.8, 0.4, 0.2]
        steps = [flat(round_of(strategy, server_round=number)) - START for number in (1, 2, 3)]
        np.testing.assert_allclose(steps[1], steps[0] / 2, rtol=1e-6)
        np.testing.assert_allclose(steps[2], steps[0] / 4, rtol=1e-6)

    def test_none_takes_the_rules_default(self) -> None:
        assert RuleStrategy(FedAvg()).server_lr == 1.0
        assert RuleStrategy(DQNFed()).server_lr == 0.2
        assert RuleStrategy(DQNFed(), server_lr=0.0).server_lr == 0.0

    def test_the_rule_sees_what_the_clients_sent(self) -> None:
        seen: list[Cohort] = []

        class Spy(Rule):
            needs: ClassVar[tuple[str, ...]] = ("loss", "rate")
            wants: ClassVar[tuple[str, ...]] = ("steps",)

            def direction(self, cohort: Cohort) -> Direction:
                seen.append(cohort)
                return Direction(cohort.updates.mean(0), cohort.weights, {"spied": 1.0, "mode": "full"})

        with_steps = {
            k: lambda m: answer(m, metrics=numbers(m.metadata.dst_node_id - 1, steps=3)) for k in range(5)
        }
        strategy = RuleStrategy(Spy(), server_lr=0.3)
        round_of(strategy, with_steps)
        (cohort,) = seen
        assert cohort.clients == (0, 1, 2, 3, 4)
        assert cohort.losses.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
        assert cohort.weights.tolist() == pytest.approx([k / 15 for k in (1, 2, 3, 4, 5)])
        assert cohort.server_lr == 0.3
        assert {name: column.tolist() for name, column in cohort.reports.items()} == {
            "rate": [0.5] * 5,
            "steps": [3.0] * 5,
        }
        assert strategy.last.weights == pytest.approx({k: (k + 1) / 15 for k in range(5)})
        assert strategy.last.info == {"spied": 1.0, "mode": "full"}
        # One client that does not send what is only wanted takes it from all.
        round_of(strategy, {**with_steps, 2: answer})
        assert set(seen[1].reports) == {"rate"}

    def test_a_step_out_of_the_finite_numbers_is_an_error(self) -> None:
        strategy = RuleStrategy(FedAvg(), server_lr=1e39)
        with pytest.raises(RoundError, match=r"round 1: .*finite.*server.lr"):
            round_of(strategy)

    def test_a_direction_that_overflows_is_an_error_of_the_round(self) -> None:
        """d = g / c: finite updates and losses, but no float32 holds their quotient."""
        strategy = RuleStrategy(AdaFed(scale="raw"))

        def large(message: Message) -> Message:
            client = message.metadata.dst_node_id - 1
            return answer(message, [1e37] * NUM_PARAMETERS, numbers(client, loss=1e-6))

        with pytest.raises(RoundError, match="round 1"):
            round_of(strategy, dict.fromkeys(range(5), large))


class NeedsLoss(Rule):
    """The plain mean; refuses updates that are not finite as every rule does."""

    def direction(self, cohort: Cohort) -> Direction:
        weights = torch.full((len(cohort.clients),), 1.0 / len(cohort.clients), dtype=torch.float64)
        return Direction(cohort.combine(weights), weights)


class TestFailures:
    @pytest.mark.parametrize(("make", "said"), BAD.values(), ids=list(BAD))
    def test_what_cannot_be_averaged_stops_the_run_and_is_named(self, make: Any, said: str) -> None:
        with pytest.raises(ClientError, match=f"^client 3, round 7: .*{said}") as caught:
            round_of(RuleStrategy(NeedsLoss()), {3: make}, server_round=7)
        assert (caught.value.client, caught.value.server_round) == (3, 7)

    @pytest.mark.parametrize("rule", [FedAvg(), AdaFed(), NeedsLoss()], ids=["FedAvg", "AdaFed", "NeedsLoss"])
    @pytest.mark.parametrize("name", ["an update with NaN", "an update with inf", "an update of another length"])
    def test_a_tolerated_failure_is_left_out_and_recorded(self, rule: AnyRule, name: str) -> None:
        make, _ = BAD[name]
        strategy = RuleStrategy(rule, max_failures=2)
        stepped = round_of(strategy, {1: make, 4: BAD["an error"][0]})
        assert sorted(failure.client for failure in strategy.last.failures) == [1, 4]
        assert all(failure.error for failure in strategy.last.failures)
        assert set(strategy.last.weights) == {0, 2, 3}

        # The same step as if the two had not been there.
        good = RuleStrategy(rule)
        messages = list(good.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of()))
        arrays, _ = good.aggregate_train(1, [answer(messages[k]) for k in (0, 2, 3)])
        assert arrays is not None
        np.testing.assert_array_equal(flat(stepped), flat(arrays))

    @pytest.mark.parametrize("kind", ["an update with NaN", "an error", "no loss"])
    def test_exactly_as_many_are_tolerated_as_allowed(self, kind: str) -> None:
        make = BAD[kind][0]
        for allowed in (1, 2):
            strategy = RuleStrategy(NeedsLoss(), max_failures=allowed)
            round_of(strategy, dict.fromkeys(range(allowed), make))
            assert len(strategy.last.failures) == allowed
            with pytest.raises(ClientError, match=rf"client 0, round 1: .*\({allowed} more clients? failed\)"):
                round_of(strategy, dict.fromkeys(range(allowed + 1), make))

    def test_failures_of_different_kinds_add_up(self) -> None:
        bad = {0: BAD["an update with NaN"][0], 2: BAD["an error"][0]}
        with pytest.raises(ClientError):
            round_of(RuleStrategy(NeedsLoss(), max_failures=1), bad)

    def test_failures_are_forgotten_in_the_next_round(self) -> None:
        strategy = RuleStrategy(FedAvg(), max_failures=1)
        round_of(strategy, {0: BAD["an error"][0]})
        round_of(strategy, server_round=2)
        assert strategy.last.failures == ()

    @pytest.mark.parametrize("kind", ["an update with NaN", "an error"])
    def test_all_clients_failing_always_stops_the_run(self, kind: str) -> None:
        with pytest.raises(ClientError, match=r"client 0, round 1: .*4 more clients failed"):
            round_of(RuleStrategy(FedAvg(), max_failures=100), dict.fromkeys(range(5), BAD[kind][0]))

    def test_no_answer_at_all_stops_the_run(self) -> None:
        strategy = RuleStrategy(FedAvg(), max_failures=100)
        list(strategy.configure_train(1, pack_arrays(WEIGHTS), ConfigRecord(), grid_of()))
        with pytest.raises(RoundError, match="round 1: no client answered"):
            strategy.aggregate_train(1, [])

    def test_clients_without_examples_stop_the_run(self) -> None:
        nothing = dict.fromkeys(range(5), with_metrics(**{"num-examples": 0}))
        with pytest.raises(RoundError, match="no examples"):
            round_of(RuleStrategy(FedAvg()), nothing)

    def test_a_rule_that_needs_no_loss_is_not_refused_for_lack_of_one(self) -> None:
        assert "loss" not in FedAvg().needs
        round_of(RuleStrategy(FedAvg()), dict.fromkeys(range(5), with_metrics(loss=None)))

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -1.0])
    def test_a_loss_that_nobody_needs_fails_its_client_alone_or_no_one(self, loss: float) -> None:
        strategy = RuleStrategy(FedAvg(), max_failures=1)
        round_of(strategy, {2: with_metrics(loss=loss)})
        assert {failure.client for failure in strategy.last.failures} <= {2}

    def test_the_loss_may_have_another_name(self) -> None:
        renamed = dict.fromkeys(range(5), with_metrics(loss=None, train_loss=2.0))
        round_of(RuleStrategy(NeedsLoss(), loss_key="train_loss"), renamed)
        with pytest.raises(ClientError, match='it sent no "train_loss"'):
            round_of(RuleStrategy(NeedsLoss(), loss_key="train_loss"))


class TestEvaluation:
    def replies(self, strategy: RuleStrategy, bad: dict[int, Any] | None = None) -> list[Message]:
        sent = strategy.configure_evaluate(2, pack_arrays(WEIGHTS), ConfigRecord(), grid_of(3))
        made = []
        for message in sent:
            give_id(message)
            client = message.metadata.dst_node_id - 1
            metrics = MetricRecord(
                {"client": client, "num-examples": 10 * (client + 1), "test_loss": float(client)}
            )
            good = Message(RecordDict({"metrics": metrics}), reply_to=message)
            made.append((bad or {}).get(client, lambda _, good=good: good)(message))
        return made

    def test_the_mean_is_weighted_by_examples(self) -> None:
        strategy = RuleStrategy(FedAvg())
        means = strategy.aggregate_evaluate(2, self.replies(strategy))
        assert means is not None
        assert dict(means) == {"test_loss": pytest.approx((0 * 10 + 1 * 20 + 2 * 30) / 60)}

    def test_a_failure_is_named(self) -> None:
        bad = {1: BAD["an error"][0]}
        strategy = RuleStrategy(FedAvg())
        with pytest.raises(ClientError, match="client 1, round 2: RuntimeError: out of memory"):
            strategy.aggregate_evaluate(2, self.replies(strategy, bad))
        tolerant = RuleStrategy(FedAvg(), max_failures=1)
        means = tolerant.aggregate_evaluate(2, self.replies(tolerant, bad))
        assert means is not None
        assert means["test_loss"] == pytest.approx(2 * 30 / 40)
