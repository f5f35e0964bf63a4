"""The Flower ClientApp: unpack, train or evaluate, pack. Stock Flower hands it one message, our grid a block."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.evaluation import evaluate
from clients.training import Fit, QuasiNewton, fit_each, train_loss
from fedsim import seeds
from fedsim.datasets import Split, data_root
from fedsim.federation import Federation
from fedsim.metrics import SUMS, measured
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork
from fedsim.scenario import Scenario, overrides_of
from fedsim.wire import CLIENT, EXAMPLES, LOSSES, Block, Request, pack_state, unpack_request, unpack_state

GROUP_EXAMPLES = 2048
"""Test examples evaluated in one stream; groups depend on shard sizes alone, so no schedule changes a bit."""

State = dict[str, NDArray[np.generic]]

log = logging.getLogger("fedsim")


class LocalApp:
    """Answers for any client of a federation.

    Travels to workers as settings and data; the network is built where it is used first.

    Args:
        scenario: The experiment.
        federation: Every client's data.
        device: Where the clients train.
    """

    def __init__(self, scenario: Scenario, federation: Federation, device: str = "cpu") -> None:
        self._scenario = scenario
        self._federation = federation
        self._device = device
        self._newton = _newton(scenario)
        self._method = scenario.strategy.local()
        self._resident: _Resident | None = None
        self.num_clients = federation.num_clients
        self.stateful = (self._newton is not None and self._newton.from_rounds) or (
            self._method is not None and self._method.stateful
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
            self._scenario.model,
            self._federation.input_shape,
            self._federation.num_classes,
            self._scenario.seed,
        )
        with torch.inference_mode():
            network(self._federation.train.x[:1])

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        """Return single clients for training, groups that share a stream for evaluation."""
        if _action(kind) != "evaluate":
            return [[client] for client in clients]
        wanted = set(clients)
        groups = self._federation.evaluation_groups(GROUP_EXAMPLES)
        return [members for group in groups if (members := [c for c in group if c in wanted])]

    def cost(self, kind: str, client: int) -> float:
        """Return the number of examples a client goes through, plus a constant for turning to it."""
        if _action(kind) == "evaluate":
            return float(self._federation.test_sizes[client])
        if kind == LOSSES:
            return float(self._federation.train_sizes[client])
        epochs = max(1, self._scenario.client.local_epochs)
        if self._method is not None and self._method.personal:
            epochs *= 2  # a model of its own is trained beside the other
        return 20.0 + float(self._federation.train_sizes[client]) * (epochs + 1)

    def run(
        self, kind: str, content: RecordDict, clients: Sequence[int], states: Sequence[State]
    ) -> tuple[Block, list[State]]:
        """Train or evaluate clients at the weights of one request.

        A client that raises is an error in the block; the others go on.
        """
        request = unpack_request(content)
        here = self._here()
        theta = torch.from_numpy(request.theta).to(here.device)
        if kind == LOSSES:
            return self._losses(here, theta, clients), [{} for _ in clients]
        if _action(kind) == "evaluate":
            block = self._evaluate(here, theta, clients)
            if self._method is not None and self._method.personal:
                block = self._evaluate_own(here, theta, clients, states, block)
            return block, [{} for _ in clients]
        return self._train(here, request, theta, clients, states)

    def _here(self) -> _Resident:
        if self._resident is None:
            self._resident = _Resident(self._scenario, self._federation, torch.device(self._device))
        return self._resident

    def _train(
        self,
        here: _Resident,
        request: Request,
        theta: torch.Tensor,
        clients: Sequence[int],
        states: Sequence[State],
    ) -> tuple[Block, list[State]]:
        updates = np.zeros((len(clients), len(request.theta)), np.float32)
        reports: list[dict[str, float]] = []
        kept: list[State] = []
        errors: dict[int, str] = {}
        for row, (client, state) in enumerate(zip(clients, states, strict=True)):
            report: dict[str, float] = {}
            new_state = state
            try:
                fit = self._fit(here, request, theta, client, state)
                if self.stateful:
                    _refuse_non_finite(fit)
                updates[row] = fit.update.cpu().numpy()
                report = dict(fit.report)
                new_state = {name: tensor.cpu().numpy() for name, tensor in fit.state.items()}
            except Exception as error:  # whatever a client does, its name must reach the server
                errors[row] = f"{type(error).__name__}: {error}"
                log.exception("client %d failed in round %d", client, request.server_round)
            reports.append(report)
            kept.append(new_state)
        block = Block(
            clients=tuple(clients),
            numbers=_columns(clients, reports),
            updates=updates,
            errors=errors,
            theta=None if request.wants_update else request.theta,
            layout=None if request.wants_update else request.layout,
        )
        return block, kept

    def _fit(self, here: _Resident, request: Request, theta: torch.Tensor, client: int, state: State) -> Fit:
        return fit_each(
            here.model,
            theta,
            here.train(client),
            self._scenario.client,
            self._scenario.client_lr(max(1, request.server_round)),
            seeds.generator(self._scenario.seed, "batches", request.server_round, client),
            self._newton,
            here.tensors(state),
            self._method,
            here.tensors(request.extra),
        )

    def _losses(self, here: _Resident, theta: torch.Tensor, clients: Sequence[int]) -> Block:
        """Return the training loss of each client at the weights sent."""
        weight_decay = self._scenario.client.weight_decay
        reports: list[dict[str, float]] = []
        errors: dict[int, str] = {}
        for row, client in enumerate(clients):
            report: dict[str, float] = {}
            try:
                train = here.train(client)
                report = {
                    EXAMPLES: float(len(train)),
                    "loss": train_loss(here.model, theta, train, weight_decay),
                }
            except Exception as error:  # whatever happens, the client's name must reach the server
                errors[row] = f"{type(error).__name__}: {error}"
                log.exception("the loss of client %d cannot be computed", client)
            reports.append(report)
        return Block(tuple(clients), _columns(clients, reports), errors=errors)

    def _evaluate_own(
        self,
        here: _Resident,
        theta: torch.Tensor,
        clients: Sequence[int],
        states: Sequence[State],
        block: Block,
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
            try:
                test, sizes = here.test(range(client, client + 1))
                found = evaluate(here.model, own, test, sizes, here.metrics, num_groups=here.num_groups)
            except Exception as error:  # whatever happens, the client's name must reach the server
                errors[row] = f"{type(error).__name__}: {error}"
                log.exception("evaluation of client %d's own model failed", client)
                continue
            for name, column in found.items():
                numbers[_sent(name)][row] = column[0]
        return Block(tuple(clients), numbers, errors=errors)

    def _evaluate(self, here: _Resident, theta: torch.Tensor, clients: Sequence[int]) -> Block:
        wanted = set(clients)
        columns: dict[str, NDArray[np.float64]] = {}
        places = {client: row for row, client in enumerate(clients)}
        failed: dict[int, str] = {}
        here.model.theta.copy_(theta)
        for group in self._federation.evaluation_groups(GROUP_EXAMPLES):
            if wanted.isdisjoint(group):
                continue
            try:
                test, sizes = here.test(group)
                theta = here.model.theta
                found = evaluate(here.model, theta, test, sizes, here.metrics, num_groups=here.num_groups)
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


class _Resident:
    """What stays on a worker's device: the network and the data."""

    def __init__(self, scenario: Scenario, federation: Federation, device: torch.device) -> None:
        self.device = device
        network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
        self.model = FlatNetwork(network, device)
        self.metrics = measured(scenario.evaluation.metrics)
        self.num_groups = len(federation.group_names)
        self._train, self._test = federation.train.to(device), federation.test.to(device)
        self._federation = federation

    def tensors(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
        """Return copies on the device: what comes from shared memory is read-only."""
        return {name: torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}

    def train(self, client: int) -> Split:
        offsets = self._federation.train_offsets
        return self._train[int(offsets[client]) : int(offsets[client + 1])]

    def test(self, group: range) -> tuple[Split, list[int]]:
        offsets = self._federation.test_offsets
        rows = slice(int(offsets[group.start]), int(offsets[group.stop]))
        return self._test[rows], [int(self._federation.test_sizes[client]) for client in group]


def _refuse_non_finite(fit: Fit) -> None:
    """Refuse what the server would refuse, before the client keeps a state that goes with it.

    Raises:
        ValueError: The update or what would be kept is not finite.
    """
    for name, tensor in {"update": fit.update, **fit.state}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"its {name} is not finite")


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


@lru_cache(maxsize=1)
def _app_of(path: str, overrides: str) -> LocalApp:
    """Return the application of a scenario, one per process."""
    scenario = Scenario.load(path, overrides_of(overrides))
    federation = Federation.build(scenario.data, scenario.partition, scenario.seed, data_root())
    torch.set_num_threads(scenario.engine.threads_per_worker)
    return LocalApp(scenario, federation, "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu")


app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client this node stands for."""
    return _answer("train", message, context)


@app.query(LOSSES.partition(".")[2])
def losses(message: Message, context: Context) -> Message:
    """Answer with the training loss of the client this node stands for."""
    return _answer(LOSSES, message, context)


@app.evaluate()
def evaluate_client(message: Message, context: Context) -> Message:
    """Evaluate on the client this node stands for."""
    return _answer("evaluate", message, context)


def _answer(kind: str, message: Message, context: Context) -> Message:
    local = _app_of(str(context.run_config["scenario"]), str(context.run_config["overrides"]))
    client = int(context.node_config["partition-id"])
    block, kept = local.run(kind, message.content, [client], [unpack_state(context.state)])
    if block.errors:
        raise RuntimeError(block.errors[0])
    if local.stateful and kind == "train":
        context.state = pack_state(kept[0])
    return Message(block.content(0), reply_to=message)
