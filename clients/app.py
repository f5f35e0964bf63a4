"""The Flower ClientApp: unpack, train or evaluate, pack. Stock Flower hands it one message, our grid a block."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.training import Fit, QuasiNewton, evaluate, fit_each
from fedsim import seeds
from fedsim.datasets import Split, data_root
from fedsim.federation import Federation
from fedsim.metrics import all_metrics
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork
from fedsim.scenario import Scenario, overrides_of
from fedsim.wire import CLIENT, EXAMPLES, Block, Request, pack_state, unpack_request, unpack_state

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
        self._resident: _Resident | None = None
        self.num_clients = federation.num_clients
        self.stateful = self._newton is not None and self._newton.from_rounds

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": None}

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
        if kind.partition(".")[0] != "evaluate":
            return [[client] for client in clients]
        wanted = set(clients)
        groups = self._federation.evaluation_groups(GROUP_EXAMPLES)
        return [members for group in groups if (members := [c for c in group if c in wanted])]

    def cost(self, kind: str, client: int) -> float:
        """Return the number of examples a client goes through, plus a constant for turning to it."""
        if kind.partition(".")[0] == "evaluate":
            return float(self._federation.test_sizes[client])
        epochs = max(1, self._scenario.client.local_epochs)
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
        if kind.partition(".")[0] == "evaluate":
            return self._evaluate(here, theta, clients), [{} for _ in clients]
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
            {name: torch.from_numpy(array.copy()).to(here.device) for name, array in state.items()},
        )

    def _evaluate(self, here: _Resident, theta: torch.Tensor, clients: Sequence[int]) -> Block:
        wanted = set(clients)
        found: dict[int, dict[str, float]] = {}
        failed: dict[int, str] = {}
        here.model.theta.copy_(theta)
        for group in self._federation.evaluation_groups(GROUP_EXAMPLES):
            if wanted.isdisjoint(group):
                continue
            try:
                test, sizes = here.test(group)
                means = evaluate(here.model, here.model.theta, test, sizes, here.metrics)
            except Exception as error:  # whatever happens, the clients' names must reach the server
                log.exception("evaluation of clients %d to %d failed", group.start, group.stop - 1)
                failed |= dict.fromkeys(group, f"{type(error).__name__}: {error}")
                continue
            for place, client in enumerate(group):
                numbers = {f"test_{name}": float(column[place]) for name, column in means.items()}
                found[client] = {**numbers, EXAMPLES: float(sizes[place])}
        errors = {row: failed[client] for row, client in enumerate(clients) if client in failed}
        return Block(tuple(clients), _columns(clients, [found.get(c, {}) for c in clients]), errors=errors)


class _Resident:
    """What stays on a worker's device: the network and the data."""

    def __init__(self, scenario: Scenario, federation: Federation, device: torch.device) -> None:
        self.device = device
        network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
        self.model = FlatNetwork(network, device)
        self.metrics = all_metrics()
        self._train, self._test = federation.train.to(device), federation.test.to(device)
        self._federation = federation

    def train(self, client: int) -> Split:
        offsets = self._federation.train_offsets
        return self._train[int(offsets[client]) : int(offsets[client + 1])]

    def test(self, group: range) -> tuple[Split, list[int]]:
        offsets = self._federation.test_offsets
        rows = slice(int(offsets[group.start]), int(offsets[group.stop]))
        return self._test[rows], [int(self._federation.test_sizes[client]) for client in group]


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
