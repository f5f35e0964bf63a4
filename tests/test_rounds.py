"""The round loop drives Flower's own strategies as well as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, QFedAvg, Strategy

from clients.app import LocalApp
from fedsim.engine.base import Submitted
from fedsim.engine.local import LocalGrid
from fedsim.errors import RoundError
from fedsim.models._check import build_model
from fedsim.parameters import Layout
from fedsim.rounds import Round, run_rounds
from fedsim.scenario import Scenario
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules.fedavg import FedAvg as OurFedAvg
from strategies.rules.qfedavg import QFedAvg as OurQFedAvg
from tests.engine.fakes import FakeApp
from tests.test_determinism import federation_of, scenario_of

SCENARIO: Scenario = scenario_of("fedavg", server={})
FEDERATION = federation_of(SCENARIO)


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid(LocalApp(SCENARIO, FEDERATION))


def start() -> ArrayRecord:
    network = build_model(SCENARIO.model, FEDERATION.input_shape, FEDERATION.num_classes, SCENARIO.seed)
    return pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()})


def flat(arrays: ArrayRecord) -> np.ndarray:
    named = unpack_arrays(arrays)
    return Layout.of(named).join(named)


class Recorder:
    def __init__(self) -> None:
        self.rounds: list[Round] = []

    def __call__(self, finished: Round) -> None:
        self.rounds.append(finished)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.05, q=0.2, train_loss_key="loss"),
    "FedAdam": lambda: FedAdam(eta=0.01),
    "ours": lambda: RuleStrategy(OurFedAvg()),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy_of_flower_trains(name: str, grid: LocalGrid) -> None:
    seen = Recorder()
    final = run_rounds(STRATEGIES[name](), grid, start(), num_rounds=3, callbacks=[seen])
    assert [finished.number for finished in seen.rounds] == [0, 1, 2, 3]
    assert [len(finished.trained) for finished in seen.rounds] == [0, 8, 8, 8]
    losses = [np.mean([answer.numbers["test_loss"] for answer in finished.evaluated]) for finished in seen.rounds]
    assert losses[-1] < losses[0]
    assert seen.rounds[-1].arrays is final
    assert np.isfinite(flat(final)).all()
    every = {answer.client for answer in seen.rounds[0].evaluated}
    assert every == set(range(8))


def test_our_fedavg_equals_flowers_to_rounding(grid: LocalGrid) -> None:
    """Same sampling (all), same local training: the means of weights and of updates are one thing."""
    theirs = run_rounds(FedAvg(), grid, start(), num_rounds=2)
    ours = run_rounds(RuleStrategy(OurFedAvg()), grid, start(), num_rounds=2)
    moved = np.abs(flat(theirs) - flat(start())).max()
    assert moved > 1e-3
    np.testing.assert_allclose(flat(ours), flat(theirs), atol=2e-6, rtol=0)


def test_our_qfedavg_equals_flowers_to_rounding(grid: LocalGrid) -> None:
    theirs = run_rounds(
        QFedAvg(client_learning_rate=0.05, q=0.7, train_loss_key="loss"), grid, start(), num_rounds=2
    )
    ours = run_rounds(RuleStrategy(OurQFedAvg(q=0.7, client_lr=0.05)), grid, start(), num_rounds=2)
    np.testing.assert_allclose(flat(ours), flat(theirs), atol=2e-6, rtol=0)


def test_the_model_a_caller_passes_in_is_left_alone(grid: LocalGrid) -> None:
    for make in STRATEGIES.values():
        arrays = start()
        run_rounds(make(), grid, arrays, num_rounds=1)
        np.testing.assert_array_equal(flat(arrays), flat(start()))


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [0, 1, 2, 3]), (2, 5, [0, 2, 4, 5]), (2, 4, [0, 2, 4]), (10, 3, [0, 3])],
)
def test_the_first_and_last_model_are_always_evaluated(every: int, rounds: int, expected: list[int]) -> None:
    central_at: list[int] = []

    def central(number: int, arrays: ArrayRecord) -> dict[str, float]:
        central_at.append(number)
        return {"loss": float(number)}

    seen = Recorder()
    run_rounds(
        RuleStrategy(OurFedAvg()),
        LocalGrid(WithLoss(4)),
        pack_arrays({"w": np.zeros(2, np.float32)}),
        num_rounds=rounds,
        evaluate_every=every,
        central=central,
        callbacks=[seen],
    )
    assert [finished.number for finished in seen.rounds if finished.evaluated] == expected == central_at
    assert [finished.number for finished in seen.rounds] == list(range(rounds + 1))
    assert {r.number: dict(r.central) for r in seen.rounds if r.central} == {
        n: {"loss": float(n)} for n in expected
    }


class WithLoss(FakeApp):
    """The fake, with the loss that our strategy asks for."""

    def run(self, kind: str, content: Any, units: Any, states: Any, desk: Any) -> Any:
        block, kept = super().run(kind, content, units, states, desk)
        block.numbers["loss"] = np.ones(len(block.clients))  # type: ignore[index]
        return block, kept


def test_every_callback_sees_every_round_in_order() -> None:
    order: list[tuple[str, int]] = []
    run_rounds(
        RuleStrategy(OurFedAvg()),
        LocalGrid(WithLoss(3)),
        pack_arrays({"w": np.zeros(2, np.float32)}),
        num_rounds=2,
        callbacks=[
            lambda done: order.append(("first", done.number)),
            lambda done: order.append(("second", done.number)),
        ],
    )
    assert order == [(name, number) for number in range(3) for name in ("first", "second")]


def test_a_round_holds_what_the_rule_did_and_its_times() -> None:
    seen = Recorder()
    run_rounds(
        RuleStrategy(OurFedAvg(), clients_per_round=2),
        LocalGrid(WithLoss(4)),
        pack_arrays({"w": np.zeros(2, np.float32)}),
        num_rounds=1,
        callbacks=[seen],
    )
    before, after = seen.rounds
    assert (before.trained, dict(before.weights), dict(before.info)) == ((), {}, {})
    chosen = {answer.client for answer in after.trained}
    assert len(chosen) == 2
    assert dict(after.weights) == dict.fromkeys(sorted(chosen), 0.5)
    assert len(after.evaluated) == 4
    assert set(after.seconds) == {"train", "aggregate", "evaluate", "total"}
    assert after.seconds["total"] >= after.seconds["train"] > 0
    # FakeApp: an update is the client's number plus the sum of the weights, which start at zero.
    expected = -np.mean(sorted(chosen))
    np.testing.assert_allclose(unpack_arrays(after.arrays)["w"], [expected, expected], rtol=1e-6)


class NoModel(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:  # noqa: ARG002
        list(replies)
        return None, None


class Failing(FakeApp):
    def run(self, kind: str, content: Any, units: Any, states: Any, desk: Any) -> Any:
        block, kept = super().run(kind, content, units, states, desk)
        block.errors.update(dict.fromkeys(range(len(block.clients)), "no luck"))  # type: ignore[attr-defined]
        return block, kept


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (FakeApp(3), "round 1: the strategy gave no model; 3 clients answered"),
        (Failing(3), r"round 1: the strategy gave no model; client \d: no luck \(3 of 3 clients failed\)"),
    ],
)
def test_a_round_without_a_model_is_an_error(app: FakeApp, said: str) -> None:
    with pytest.raises(RoundError, match=said):
        run_rounds(
            NoModel(fraction_evaluate=0.0),
            LocalGrid(app),
            pack_arrays({"w": np.zeros(2, np.float32)}),
            num_rounds=2,
        )


def test_the_timeout_reaches_the_grid() -> None:
    class Timed(LocalGrid):
        given: list[float | None]

        def submit(self, messages: Any, *, timeout: float | None = None, **more: Any) -> Submitted:
            self.given.append(timeout)
            return super().submit(messages, timeout=timeout, **more)

    grid = Timed(WithLoss(2))
    for timeout in (12.5, None):
        grid.given = []
        strategy = RuleStrategy(OurFedAvg())
        run_rounds(strategy, grid, pack_arrays({"w": np.zeros(2, np.float32)}), num_rounds=1, timeout=timeout)
        assert grid.given == [timeout] * 3  # evaluation, training, evaluation


class Watched(LocalGrid):
    """Says what it is asked and when."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.asked: list[str] = []

    def submit(self, messages: Any, **more: Any) -> Submitted:
        sent = list(messages)
        self.asked.append(sent[0].metadata.message_type)
        return super().submit(sent, **more)


def test_the_next_round_is_on_its_way_before_the_last_one_is_written_down() -> None:
    grid = Watched(WithLoss(3))
    at: list[list[str]] = []
    run_rounds(
        RuleStrategy(OurFedAvg()),
        grid,
        pack_arrays({"w": np.zeros(2, np.float32)}),
        num_rounds=3,
        evaluate_every=2,
        callbacks=[lambda _: at.append(list(grid.asked))],
    )
    assert [asked[-1] for asked in at] == ["train", "train", "train", "evaluate"]
    assert grid.asked == ["evaluate", "train", "train", "evaluate", "train", "evaluate"]


def test_a_round_that_cannot_begin_costs_nothing_of_the_one_before() -> None:
    class Short(RuleStrategy):
        def configure_train(self, server_round: int, *rest: Any) -> Any:
            if server_round == 3:
                raise RoundError("round 3: nobody is left")
            return super().configure_train(server_round, *rest)

    seen = Recorder()
    with pytest.raises(RoundError, match="round 3: nobody is left"):
        run_rounds(
            Short(OurFedAvg()),
            LocalGrid(WithLoss(3)),
            pack_arrays({"w": np.zeros(2, np.float32)}),
            num_rounds=5,
            callbacks=[seen],
        )
    assert [finished.number for finished in seen.rounds] == [0, 1, 2]


def test_a_strategy_that_may_look_back_is_never_ahead() -> None:
    """Flower's own strategies may learn from an evaluation what the next round is to be."""
    grid, order = LocalGrid(WithLoss(3)), []

    class Adaptive(FedAvg):
        def configure_train(self, server_round: int, *rest: Any) -> Any:
            order.append(("configure", server_round))
            return super().configure_train(server_round, *rest)

        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            order.append(("evaluated", server_round))
            return super().aggregate_evaluate(server_round, replies)

    arrays = pack_arrays({"w": np.zeros(2, np.float32)})
    run_rounds(Adaptive(min_available_nodes=1), grid, arrays, num_rounds=2)
    assert order == [("evaluated", 0), ("configure", 1), ("evaluated", 1), ("configure", 2), ("evaluated", 2)]


def test_the_callers_thread_count_is_put_back(grid: LocalGrid) -> None:
    before = torch.get_num_threads()
    run_rounds(RuleStrategy(OurFedAvg()), grid, start(), num_rounds=1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("every", "kept"), [(0, []), (1, [0, 1, 2, 3, 4, 5]), (3, [0, 3, 5]), (9, [0, 5])])
def test_what_a_checkpoint_needs_is_handed_over_when_it_is_due(every: int, kept: list[int]) -> None:
    seen = Recorder()
    run_rounds(
        RuleStrategy(OurFedAvg()),
        LocalGrid(WithLoss(3)),
        pack_arrays({"w": np.zeros(2, np.float32)}),
        num_rounds=5,
        callbacks=[seen],
        keep_every=every,
    )
    assert [finished.number for finished in seen.rounds if finished.kept is not None] == kept


def test_a_run_goes_on_after_a_round(grid: LocalGrid) -> None:
    whole, rest = Recorder(), Recorder()
    expected = run_rounds(
        RuleStrategy(OurFedAvg()), grid, start(), num_rounds=4, evaluate_every=3, callbacks=[whole]
    )
    found = run_rounds(
        RuleStrategy(OurFedAvg()),
        grid,
        pack_arrays({}),
        num_rounds=4,
        evaluate_every=3,
        callbacks=[rest],
        after=whole.rounds[1],
    )
    assert [finished.number for finished in rest.rounds] == [2, 3, 4]
    assert [bool(finished.evaluated) for finished in rest.rounds] == [False, True, True]
    np.testing.assert_array_equal(flat(found), flat(expected))
    again = run_rounds(RuleStrategy(OurFedAvg()), grid, start(), num_rounds=4, after=whole.rounds[4])
    np.testing.assert_array_equal(flat(again), flat(expected))
