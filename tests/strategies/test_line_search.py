"""A rule's search for the server's learning rate: extra rounds of losses through the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsim import wire
from fedsim.engine.local import LocalGrid
from fedsim.errors import ClientError
from fedsim.wire import Block, pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.rules import Cohort, Direction, Facts, Rule, Search


class Quadratics:
    """Client k has the loss (theta - k)^2 / 2 on one weight; its gradient is its update.

    Args:
        num_clients: Clients.
        trouble: Client -> what it answers instead of its loss in a search.
    """

    def __init__(self, num_clients: int = 5, trouble: dict[int, Any] | None = None) -> None:
        self.num_clients = num_clients
        self.trouble = trouble or {}
        self.asked: list[tuple[str, list[int], float]] = []

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:  # noqa: ARG002
        return [[client] for client in clients]

    def cost(self, kind: str, client: int) -> float:  # noqa: ARG002
        return 1.0

    def reads_state(self, kind: str) -> bool:  # noqa: ARG002
        return False

    def keeps_state(self, kind: str) -> bool:  # noqa: ARG002
        return False

    def width(self, kind: str, content: RecordDict) -> int:  # noqa: ARG002
        return 0

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[Any],  # noqa: ARG002
        desk: Any,  # noqa: ARG002
    ) -> tuple[Block, list[Any]]:
        clients = [client for unit in units for client in unit]
        theta = float(wire.unpack_request(content).theta[0])
        self.asked.append((kind, list(clients), theta))
        away = theta - np.asarray(clients, dtype=np.float64)
        losses, errors = 0.5 * away**2, {}
        numbers = {"client": np.asarray(clients, float), "num-examples": np.ones(len(clients)), "loss": losses}
        if kind == wire.LOSSES:
            for row, client in enumerate(clients):
                if self.trouble.get(client) == "error":
                    errors[row] = "RuntimeError: no luck"
                elif client in self.trouble:
                    losses[row] = self.trouble[client]
            if self.trouble.get("all") == "silent":  # type: ignore[call-overload]
                del numbers["loss"]
        updates = away[:, None].astype(np.float32) if kind == "train" else None
        return Block(tuple(clients), numbers, updates, errors), [{} for _ in clients]


class Halving(Rule):
    """Mean update, from a rate of 8 downwards until the mean loss falls."""

    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)
    never: bool = False

    def _least(self, trials: Sequence[tuple[float, Tensor]]) -> float:
        return min(trials, key=lambda trial: float(trial[1].mean()))[0] if trials else 0.125

    def direction(self, cohort: Cohort) -> Direction:
        before = float(cohort.losses.mean())

        def accepts(rate: float, losses: Tensor) -> bool:
            assert losses.shape == cohort.losses.shape
            assert rate > 0
            return float(losses.mean()) < before and not self.never

        search = Search((8.0, 4.0, 2.0, 1.0, 0.5), accepts, lambda trials: self._least(trials))
        return Direction(cohort.combine(cohort.weights), cohort.weights, {"hello": 1.0}, search)


def step(app: Quadratics, rule: Halving, theta: float = 10.0, **options: Any) -> tuple[float, RuleStrategy]:
    strategy, grid = RuleStrategy(rule, **options), LocalGrid(app)
    arrays: ArrayRecord = pack_arrays({"w": np.array([theta], np.float32)})
    messages: list[Message] = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    after, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert after is not None
    return float(unpack_arrays(after)["w"][0]), strategy


def test_the_first_rate_accepted_is_taken_and_no_more_is_asked() -> None:
    app = Quadratics()
    theta, strategy = step(app, Halving())
    # Mean gradient at 10 is 8; the mean loss falls for rates below 2.
    assert theta == 10.0 - 1.0 * 8.0
    assert strategy.last.info == {"hello": 1.0, "server_lr": 1.0, "num_trials": 4.0}
    assert [kind for kind, *_ in app.asked] == ["train", *["query.losses"] * 4]
    assert [theta for *_, theta in app.asked[1:]] == [10 - 64.0, 10 - 32.0, 10 - 16.0, 2.0]


def test_only_the_clients_of_the_round_are_asked() -> None:
    app = Quadratics()
    _, strategy = step(app, Halving(), clients_per_round=2, seed=3)
    trained = app.asked[0][1]
    assert len(trained) == 2
    assert all(clients == trained for _, clients, _ in app.asked)
    assert set(strategy.last.weights) == set(trained)


def test_without_an_accepted_rate_the_rule_says_what_to_take() -> None:
    theta, strategy = step(Quadratics(), Halving(never=True))
    # The mean loss is least at theta = 2, one step of rate 1 away.
    assert theta == 10.0 - 1.0 * 8.0
    assert strategy.last.info["server_lr"] == 1.0
    assert strategy.last.info["num_trials"] == 5.0


def test_a_rate_at_which_a_loss_is_not_finite_is_not_accepted() -> None:
    theta, strategy = step(Quadratics(trouble={3: np.nan}), Halving())
    assert theta == 10.0 - 0.125 * 8.0
    assert strategy.last.info["server_lr"] == 0.125


def test_a_client_that_fails_in_a_search_is_named() -> None:
    with pytest.raises(ClientError, match=r"client 3.*line search.*no luck"):
        step(Quadratics(trouble={3: "error"}), Halving(), max_failures=2)


def test_a_client_that_sends_no_loss_is_named() -> None:
    with pytest.raises(ClientError, match=r'client 0.*line search.*no "loss"'):
        step(Quadratics(trouble={"all": "silent"}), Halving())  # type: ignore[dict-item]
