"""RuleStrategy: memories, ready-made strategies, nodes that send no client number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import Strategy

import strategies
import strategies.seeded
from fedsim import plugins
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError, RoundError
from fedsim.wire import pack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import AnyRule, Cohort, Direction, MemoryRule
from strategies.rules.adafed import AdaFed
from strategies.rules.afl import AFL
from strategies.rules.fedavg import FedAvg
from tests.engine.fakes import FakeApp
from tests.strategies.replies import BAD, NUM_PARAMETERS, WEIGHTS, answer, flat, numbers, round_of


class Counting(MemoryRule):
    def initial_memory(self) -> dict[str, Any]:
        return {"count": 0}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        vector = cohort.combine(cohort.weights)
        return Direction(vector, cohort.weights), {"count": memory["count"] + 1}


class TestMemory:
    def test_it_is_handed_from_round_to_round(self) -> None:
        strategy = RuleStrategy(Counting())
        for number in (1, 2, 3):
            round_of(strategy, server_round=number)
            assert strategy.memory == {"count": number}

    def test_a_rule_without_memory_has_none(self) -> None:
        strategy = RuleStrategy(FedAvg())
        round_of(strategy)
        assert strategy.memory == {}

    def test_a_client_left_out_does_not_count_the_round_twice(self) -> None:
        strategy = RuleStrategy(Counting(), max_failures=1)
        round_of(strategy, {2: BAD["an update with NaN"][0]})
        assert strategy.memory == {"count": 1}

    @pytest.mark.parametrize("kind", ["an update with NaN", "an error"])
    def test_a_round_that_fails_changes_nothing(self, kind: str) -> None:
        strategy = RuleStrategy(Counting())
        round_of(strategy)
        last = strategy.last
        with pytest.raises(ClientError):
            round_of(strategy, {2: BAD[kind][0]}, server_round=2)
        assert strategy.memory == {"count": 1}
        assert strategy.last is last

    def test_a_step_that_cannot_be_taken_changes_nothing(self) -> None:
        strategy = RuleStrategy(Counting(), server_lr=1e39)
        with pytest.raises(RoundError):
            round_of(strategy)
        assert strategy.memory == {"count": 0}


class TestReadyMadeStrategies:
    def test_every_rule_is_a_strategy_of_its_name(self) -> None:
        found = {
            name: plugins.find("strategies.rules", name, AnyRule) for name in plugins.names("strategies.rules")
        }
        assert set(dir(strategies)) == {rule.__name__ for rule in found.values()}
        for rule in found.values():
            made = getattr(strategies, rule.__name__)
            assert issubclass(made, Strategy)
            assert made.__doc__

    def test_options_go_where_they_belong(self) -> None:
        strategy = strategies.AdaFed(gamma=0.5, server_lr=0.7, clients_per_round=3)
        assert strategy.rule == AdaFed(gamma=0.5)
        assert (strategy.server_lr, strategy.clients_per_round) == (0.7, 3)
        assert len(flat(round_of(strategy))) == NUM_PARAMETERS

    def test_what_is_wrong_is_refused(self) -> None:
        with pytest.raises(
            AttributeError, match=r'no strategy AdaFled; did you mean "AdaFed"\? there are .*SCAFFOLD'
        ):
            _ = strategies.AdaFled
        with pytest.raises(TypeError, match="gama"):
            strategies.AdaFed(gama=0.5)
        with pytest.raises(ValueError, match="gamma"):
            strategies.AdaFed(gamma=-1)


class TestNodesThatSendNoClientNumber:
    """A SuperLink draws 64-bit node ids, and somebody's own app need not number its clients."""

    NODES = (2**62 + 5, 2**61, 2**63 - 1, 2**40)

    def round(self, strategy: RuleStrategy, server_round: int, *, numbered: bool) -> None:
        class Nodes(LocalGrid):
            def get_node_ids(self) -> list[int]:
                return list(TestNodesThatSendNoClientNumber.NODES)

        grid = Nodes(FakeApp(2))
        replies = []
        for message in strategy.configure_train(server_round, pack_arrays(WEIGHTS), ConfigRecord(), grid):
            place = sorted(self.NODES).index(message.metadata.dst_node_id)
            metrics = numbers(place, loss=0.5 + place)
            if not numbered:
                del metrics["client"]
            replies.append(answer(message, np.full(NUM_PARAMETERS, place + 1.0), metrics))
        strategy.aggregate_train(server_round, replies[::-1])

    def test_memories_are_kept_by_node_as_they_would_be_by_number(self) -> None:
        with_numbers, without = (RuleStrategy(AFL(lambda_lr=0.1)) for _ in range(2))
        for server_round in (1, 2, 3):
            self.round(with_numbers, server_round, numbered=True)
            self.round(without, server_round, numbered=False)
        assert set(without.memory["lambda"]) == set(self.NODES)
        assert list(without.last.weights.values()) == list(with_numbers.last.weights.values())
        assert len(set(without.last.weights.values())) > 1

    def test_two_nodes_that_say_they_are_one_client_are_refused(self) -> None:
        def twin(message: Message) -> Message:
            return answer(message, metrics=numbers(1))

        with pytest.raises(RoundError, match="client 1 twice"):
            round_of(RuleStrategy(FedAvg()), {3: twin})
