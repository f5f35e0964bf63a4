"""Answers for any client of a federation: unpack, train or evaluate, pack. Our grids hand it a block of clients."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from clients import trial
from clients.resident import Resident, State, initial_weights, resolve
from clients.steps import Client
from clients.training import (
    Fit,
    QuasiNewton,
    Work,
    fit_each,
    fit_stacked,
    losses_each,
    losses_stacked,
    shapes_of,
)
from fedsim.datasets import Split
from fedsim.engine.task import Desk
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.metrics import SUMS
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork
from fedsim.scenario import Scenario
from fedsim.wire import (
    CLIENT,
    EXAMPLES,
    LOSSES,
    Block,
    Request,
    num_weights,
    unpack_request,
)
from strategies.stock_options import StockOptions

GROUP_EXAMPLES = 2048
"""Test examples evaluated in one stream; groups depend on shard sizes alone, so no schedule changes a bit."""

Answered = TypeVar("Answered")

log = logging.getLogger("fedsim")


class LocalApp:
    """Answers for any client of a federation.

    Travels to workers as settings and data; the network is built where it is used first.

    Args:
        scenario: The experiment; what it leaves to be chosen is chosen here, see `scenario`.
        federation: Every client's data.
        device: Where the clients train.

    Attributes:
        scenario: The experiment with `client.cohort` and `client.block_size` resolved.

    Raises:
        ScenarioError: The model does not fit the data, or cannot be trained in blocks as asked.
    """

    def __init__(self, scenario: Scenario, federation: Federation, device: str = "cpu") -> None:
        scenario = resolve(scenario, federation, device)
        self.scenario = scenario
        self._federation = federation
        self._device = device
        self._newton = _newton(scenario)
        self._method = scenario.strategy.local()
        self._resident: Resident | None = None
        self._room = sys.maxsize  # clients in a block that memory suffices for, as far as is known
        self.num_clients = federation.num_clients
        self._stacked = scenario.client.cohort == "stacked"
        self.stateful = (
            (self._newton is not None and self._newton.from_rounds)
            or (self._method is not None and self._method.stateful)
            or any(hook.stateful for hook in scenario.client.hooks)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": None}

    def reads_state(self, kind: str) -> bool:
        """Say whether what clients keep matters to their answers to a kind of request."""
        personal = self._method is not None and self._method.personal
        return self.stateful and (_action(kind) == "train" or (personal and _action(kind) == "evaluate"))

    def check(self) -> None:
        """Put one example through the network, so that a model that cannot read the data fails before the run.

        Raises:
            ScenarioError: The model does not fit the data.
        """
        network = build_model(
            self.scenario.model,
            self._federation.input_shape,
            self._federation.num_classes,
            self.scenario.seed,
        )
        with torch.inference_mode():
            network(self._federation.train.x[:1])
        self._check_hooks()
        self._resident = None  # whoever trains makes one of its own
        if self.scenario.server.initial is not None:
            initial_weights(self.scenario, self._federation)
        shape = self._federation.input_shape
        if self.scenario.client.augment != "none" and len(shape) != 3:
            raise ScenarioError(
                self.scenario.name,
                [f'client.augment: moves images, the data set gives {shape}; set it to "none"'],
            )

    def _check_hooks(self) -> None:
        """Let every hook see the network and a few examples.

        Raises:
            ScenarioError: One cannot work with this model or these data, or its teacher cannot be read.
        """
        hooks = self.scenario.client.named_hooks
        if not hooks:
            return
        try:
            here = self._here()
        except ValueError as error:  # words of a teacher's file
            raise ScenarioError(self.scenario.name, [f"client.hooks.{error}"]) from error
        shapes = shapes_of(here.model, here.pool.x[:1], self.scenario.client.batch_size)
        problem = trial.fault(here.model, here.pool, hooks, shapes, here.objective)
        if problem is not None:
            raise ScenarioError(self.scenario.name, [f"client.hooks.{problem}"])

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        """Return what is answered together: blocks for training, groups that share a stream for evaluation.

        Blocks depend on the clients asked alone, not on who works, and hold clients with about as many steps.
        """
        if _action(kind) == "evaluate":
            wanted = set(clients)
            groups = self._federation.evaluation_groups(GROUP_EXAMPLES)
            return [members for group in groups if (members := [c for c in group if c in wanted])]
        if not self._stacked:
            return [[client] for client in clients]
        sizes = self._federation.train_sizes
        by_size = sorted(clients, key=lambda client: (-sizes[client], client))
        most = self.scenario.client.block_size or len(by_size)
        blocks = np.array_split(np.asarray(by_size), math.ceil(len(by_size) / most))
        return [block.tolist() for block in blocks]

    def keeps_state(self, kind: str) -> bool:
        """Say whether clients keep something from answering a kind of request."""
        return self.stateful and _action(kind) == "train"

    def width(self, kind: str, content: RecordDict) -> int:
        """Return how many numbers an update has, D; 0 where none is asked for."""
        return num_weights(content) if _action(kind) == "train" else 0

    def cost(self, kind: str, client: int) -> float:
        """Return the number of examples a client goes through, plus a constant for turning to it."""
        if _action(kind) == "evaluate":
            return float(self._federation.test_sizes[client])
        if kind == LOSSES:
            return float(self._federation.train_sizes[client])
        epochs = max(1, self.scenario.client.local_epochs)
        if self._method is not None and self._method.personal:
            epochs *= 2  # a model of its own is trained beside the other
        return 20.0 + float(self._federation.train_sizes[client]) * (epochs + 1)

    def run(
        self,
        kind: str,
        content: RecordDict,
        units: Sequence[Sequence[int]],
        states: Sequence[State],
        desk: Desk,
    ) -> tuple[Block, list[State]]:
        """Train or evaluate clients at the weights of one request; updates go to the desk's rows.

        A client that raises is an error in the block; the others go on.
        """
        clients = [client for unit in units for client in unit]
        request = unpack_request(content)
        here = self._here()
        theta = torch.from_numpy(request.theta).to(here.device)
        if kind == LOSSES:
            return self._losses(here, request, theta, units, desk), [{} for _ in clients]
        if _action(kind) == "evaluate":
            block = self._evaluate(here, theta, clients, desk)
            if self._method is not None and self._method.personal:
                block = self._evaluate_own(here, theta, clients, states, block, desk)
            return block, [{} for _ in clients]
        return self._train(here, request, theta, units, states, desk)

    def _here(self) -> Resident:
        if self._resident is None:
            self._resident = Resident(self.scenario, self._federation, torch.device(self._device))
        return self._resident

    def _train(
        self,
        here: Resident,
        request: Request,
        theta: torch.Tensor,
        units: Sequence[Sequence[int]],
        states: Sequence[State],
        desk: Desk,
    ) -> tuple[Block, list[State]]:
        clients = [client for unit in units for client in unit]
        updates = desk.rows(len(request.theta))
        reports: list[dict[str, float]] = [{} for _ in clients]
        kept = list(states)
        errors: dict[int, str] = {}
        work = self._work(here, request)
        end = 0
        answer = fit_stacked if self._stacked else fit_each
        for unit in units:
            rows = range(end, end := end + len(unit))
            desk.turn_to(rows.start, len(rows))
            seed, number, share = self.scenario.seed, request.server_round, request.shares.get
            block = [here.client(seed, number, clients[r], states[r], share(clients[r], 1.0)) for r in rows]
            for row, fit in zip(rows, self._blockwise(answer, here, theta, work, block), strict=True):
                fault = fit if isinstance(fit, Exception) else self._fault(fit)
                if fault is not None or isinstance(fit, Exception):
                    errors[row] = f"{type(fault).__name__}: {fault}"
                    log.error("client %d failed in round %d", clients[row], request.server_round, exc_info=fault)
                    continue
                updates[row][:] = fit.update.cpu().numpy()
                reports[row] = dict(fit.report)
                # Copied: a client's row of a block would keep the whole block.
                kept[row] = {name: np.array(tensor.cpu().numpy()) for name, tensor in fit.state.items()}
        block_of_all = Block(
            clients=tuple(clients),
            numbers=_columns(clients, reports),
            errors=errors,
            posted=True,
            theta=None if request.wants_update else request.theta,
            layout=None if request.wants_update else request.layout,
        )
        return block_of_all, kept

    def _fault(self, fit: Fit) -> ValueError | None:
        """Return what the server would refuse, before the client keeps a state that goes with it."""
        if not self.stateful:
            return None
        for name, tensor in {"update": fit.update, **fit.state}.items():
            if not bool(torch.isfinite(tensor).all()):
                return ValueError(f"its {name} is not finite")
        return None

    def _work(self, here: Resident, request: Request) -> Work:
        settings = self.scenario.client
        rule = self.scenario.strategy
        needs, wants = rule.reports() if isinstance(rule, StockOptions) else (rule.needs, rule.wants)
        needed = {*needs, *wants}
        exact = settings.losses == "exact"
        return Work(
            settings,
            self.scenario.client_lr(max(1, request.server_round)),
            here.objective,
            self._newton,
            self._method,
            here.tensors(request.extra),
            before=exact or "loss" in needed,
            after=exact or "loss-after" in needed,
            largest=int(self._federation.train_sizes.max()),
        )

    def _blockwise(
        self,
        answer: Callable[[FlatNetwork, torch.Tensor, Split, Sequence[Client], Work], Sequence[Answered]],
        here: Resident,
        theta: torch.Tensor,
        work: Work,
        block: Sequence[Client],
    ) -> list[Answered | Exception]:
        """Answer for a block; if that fails, for its halves, so that what is wrong with one client costs no other.

        A GPU without memory for the block is the commonest reason; a smaller one then goes through.
        """
        if len(block) <= self._room:
            try:
                return list(answer(here.model, theta, here.pool, block, work))
            except torch.OutOfMemoryError as error:
                log.warning("a block of %d clients needs too much memory; its halves are tried", len(block))
                torch.cuda.empty_cache()
                self._room = max(1, len(block) // 2)
                if len(block) == 1:
                    return [error]
            except Exception as error:
                if len(block) == 1:
                    return [error]
                log.warning("a block of %d clients failed (%s); its halves are tried", len(block), error)
        middle = len(block) // 2
        return [
            *self._blockwise(answer, here, theta, work, block[:middle]),
            *self._blockwise(answer, here, theta, work, block[middle:]),
        ]

    def _losses(
        self,
        here: Resident,
        request: Request,
        theta: torch.Tensor,
        units: Sequence[Sequence[int]],
        desk: Desk,
    ) -> Block:
        """Return the training loss of each client at the weights sent."""
        clients = [client for unit in units for client in unit]
        work = self._work(here, request)
        answer = losses_stacked if self._stacked else losses_each
        reports: list[dict[str, float]] = []
        errors: dict[int, str] = {}
        for unit in units:
            desk.turn_to(len(reports), len(unit))
            block = [here.client(self.scenario.seed, request.server_round, client, {}) for client in unit]
            for client, loss in zip(block, self._blockwise(answer, here, theta, work, block), strict=True):
                if isinstance(loss, Exception):
                    errors[len(reports)] = f"{type(loss).__name__}: {loss}"
                    log.error("the loss of client %d cannot be computed", clients[len(reports)], exc_info=loss)
                    reports.append({})
                else:
                    reports.append({EXAMPLES: float(len(client.rows)), "loss": loss})
        return Block(tuple(clients), _columns(clients, reports), errors=errors)

    def _evaluate_own(
        self,
        here: Resident,
        theta: torch.Tensor,
        clients: Sequence[int],
        states: Sequence[State],
        block: Block,
        desk: Desk,
    ) -> Block:
        """Return each client's own model on its test shard, and the server's model as further columns."""
        assert self._method is not None
        numbers = {name: column.copy() for name, column in block.numbers.items()}
        errors = dict(block.errors)
        served = [name for name in numbers if name.startswith("test_")]
        for name in served:
            numbers[name.replace("test_", "server_", 1)] = numbers[name].copy()
        for row, (client, state) in enumerate(zip(clients, states, strict=True)):
            own = self._method.own_weights(theta, here.tensors(state))
            if own is theta or row in errors:
                continue
            desk.turn_to(row)
            try:
                found, _ = here.evaluate(own, range(client, client + 1))
            except Exception as error:  # whatever happens, the client's name must reach the server
                errors[row] = f"{type(error).__name__}: {error}"
                log.exception("evaluation of client %d's own model failed", client)
                continue
            for name, column in found.items():
                numbers[_sent(name)][row] = column[0]
        return Block(tuple(clients), numbers, errors=errors)

    def _evaluate(self, here: Resident, theta: torch.Tensor, clients: Sequence[int], desk: Desk) -> Block:
        wanted = set(clients)
        columns: dict[str, NDArray[np.float64]] = {}
        places = {client: row for row, client in enumerate(clients)}
        failed: dict[int, str] = {}
        here.model.theta.copy_(theta)
        groups = self._federation.evaluation_groups(GROUP_EXAMPLES)
        if here.objective.predictor is not None:  # every client predicts in its own way
            groups = [range(client, client + 1) for client in clients]
        for group in groups:
            if wanted.isdisjoint(group):
                continue
            asked = [places[client] for client in group if client in wanted]
            desk.turn_to(min(asked), max(asked) - min(asked) + 1)
            try:
                found, sizes = here.evaluate(here.model.theta, group)
            except Exception as error:  # whatever happens, the clients' names must reach the server
                log.exception("evaluation of clients %d to %d failed", group.start, group.stop - 1)
                failed |= dict.fromkeys(group, f"{type(error).__name__}: {error}")
                continue
            inside = [client - group.start for client in group if client in wanted]
            rows = [places[group.start + place] for place in inside]
            for name, column in {**found, EXAMPLES: np.asarray(sizes, np.float64)}.items():
                blank = np.full((len(clients), *column.shape[1:]), np.nan)
                columns.setdefault(_sent(name), blank)[rows] = column[inside]
        errors = {row: failed[client] for row, client in enumerate(clients) if client in failed}
        return Block(tuple(clients), {**_columns(clients, []), **columns}, errors=errors)


def _sent(name: str) -> str:
    """Return the name under which something measured travels."""
    return name if name == EXAMPLES or name.startswith(SUMS) else f"test_{name}"


def _action(kind: str) -> str:
    return kind.partition(".")[0]


def _columns(clients: Sequence[int], reports: Sequence[dict[str, float]]) -> dict[str, NDArray[np.float64]]:
    names = list(dict.fromkeys(name for report in reports for name in report))
    columns = {name: np.array([report.get(name, np.nan) for report in reports]) for name in names}
    return {CLIENT: np.asarray(clients, dtype=np.float64), **columns}


def _newton(scenario: Scenario) -> QuasiNewton | None:
    rule = cast(Any, scenario.strategy)
    if "rate" not in rule.needs:
        return None
    return QuasiNewton(
        rule.pairs, rule.pairs_from == "rounds", rule.row == "final_gradient", rule.curvature, rule.within_reach
    )


def alone(scenario: Scenario, federation: Federation) -> LocalApp:
    """Return the application where every client is a process of its own, as Flower runs it: there is no block."""
    if scenario.client.cohort == "auto":
        scenario = scenario.model_copy(update={"client": scenario.client.model_copy(update={"cohort": "each"})})
    return LocalApp(scenario, federation, "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu")
