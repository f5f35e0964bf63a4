"""What stays on a worker's device: the network, the data and the hooks; and how a model is trained there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import cohort, trial
from clients.evaluation import evaluate
from clients.objective import Objective
from clients.stacked import CHUNK
from clients.steps import Client, set_precision
from clients.training import shapes_of, teachers_of
from fedsim import seeds
from fedsim.datasets import Split
from fedsim.errors import ScenarioError
from fedsim.federation import Federation
from fedsim.metrics import measured
from fedsim.models._check import build_model
from fedsim.parameters import FlatNetwork, weights_file
from fedsim.scenario import Scenario

State = dict[str, NDArray[np.generic]]


class Resident:
    """What stays on a worker's device: the network and the data."""

    def __init__(self, scenario: Scenario, federation: Federation, device: torch.device) -> None:
        self.device = device
        set_precision(scenario.engine.precision, device)
        self.model = flat_network(scenario, federation, device)
        self.metrics = measured(scenario.evaluation.metrics)
        self.num_groups = len(federation.group_names)
        self.pool = federation.train.to(device)
        # Where clients overlap there is one pool for both sides.
        self._test = self.pool if federation.test is federation.train else federation.test.to(device)
        self._federation = federation
        self.objective = Objective()
        if scenario.client.hooks:
            shapes = shapes_of(self.model, self.pool.x[:1], scenario.client.batch_size)
            self.objective = Objective(scenario.client.named_hooks, shapes)
            self.objective.files = teachers_of(self.objective, self.model)

    def client(self, seed: int, server_round: int, client: int, state: State, share: float = 1.0) -> Client:
        """Return a client as local training sees it, taking a share of its local steps."""

        def stream(purpose: str) -> torch.Generator:
            return seeds.generator(seed, purpose, server_round, client)

        rows = self._rows(self._federation.train_offsets, self._federation.train_rows, range(client, client + 1))
        return Client(rows, stream, self.tensors(state), share)

    def _rows(
        self, offsets: NDArray[np.int64], numbers: NDArray[np.int32] | None, clients: range
    ) -> range | Tensor:
        """Return what consecutive clients own in a pool: a range, or examples' numbers where clients overlap."""
        begin, end = int(offsets[clients.start]), int(offsets[clients.stop])
        if numbers is None:
            return range(begin, end)
        return torch.from_numpy(numbers[begin:end].astype(np.int64)).to(self.device)

    def tensors(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, torch.Tensor]:
        """Return copies on the device: what comes from shared memory is read-only."""
        return {name: torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}

    def evaluate(self, theta: torch.Tensor, group: range) -> tuple[dict[str, NDArray[np.float64]], list[int]]:
        """Evaluate weights on the test shards of a range of clients; of one client where a hook predicts.

        Returns:
            What the metrics give, name -> [K] or [K, V], and the clients' numbers of test examples.
        """
        test = _taken(self._test, self._rows(self._federation.test_offsets, self._federation.test_rows, group))
        sizes = [int(self._federation.test_sizes[client]) for client in group]
        scores = None
        if self.objective.predictor is not None:
            assert len(group) == 1, "every client predicts in its own way"
            self.model.theta.copy_(theta)
            rows = self._rows(self._federation.train_offsets, self._federation.train_rows, group)
            scores = self.objective.predictor_of(self.model, _taken(self.pool, rows))
        found = evaluate(self.model, theta, test, sizes, self.metrics, scores, self.num_groups)
        return found, sizes


def _taken(pool: Split, rows: range | Tensor) -> Split:
    return pool[rows.start : rows.stop] if isinstance(rows, range) else pool[rows]


def flat_network(scenario: Scenario, federation: Federation, device: torch.device) -> FlatNetwork:
    """Return the scenario's network with its initial weights on a device.

    Raises:
        ScenarioError: The model does not fit the data.
    """
    network = build_model(scenario.model, federation.input_shape, federation.num_classes, scenario.seed)
    return FlatNetwork(network, device, half=scenario.engine.precision == "bf16")


def initial_weights(scenario: Scenario, federation: Federation) -> dict[str, NDArray[np.float32]]:
    """Return the weights to start from.

    Raises:
        ScenarioError: They are to come from a file that cannot be read or holds another network.
    """
    model = flat_network(scenario, federation, torch.device("cpu"))
    theta = model.theta
    if scenario.server.initial is not None:
        try:
            theta = weights_file(scenario.server.initial, model)
        except ValueError as error:
            raise ScenarioError(scenario.name, [f"server.initial: {error}"]) from error
    return model.layout.split(theta.numpy())


def _load(scenario: Scenario) -> cohort.Load:
    client = scenario.client
    walks = "rate" in scenario.strategy.needs or client.local_epochs == 0
    private = any(hook.privacy is not None for hook in client.hooks)
    return cohort.Load(
        min(1.0, scenario.engine.gpus_per_worker) or 1.0,
        CHUNK if walks else 0,
        client.batch_size if private else 0,
        bool(client.hooks),
    )


def _hooks_misfit(model: FlatNetwork, examples: Split, scenario: Scenario) -> str | None:
    """Return why clients with the scenario's hooks cannot be trained in a block, or None."""
    hooks = scenario.client.named_hooks
    shapes = shapes_of(model, examples.x[:1], scenario.client.batch_size)
    objective = Objective(hooks, shapes)
    try:
        objective.files = teachers_of(objective, model)
    except ValueError:
        return None  # said by `LocalApp.check`, which knows better words
    problem = trial.fault(model, examples, hooks, shapes, objective)
    return None if problem is not None else trial.misfit(model, examples, hooks, shapes, objective)


def resolve(scenario: Scenario, federation: Federation, device: str) -> Scenario:
    """Return the scenario with `client.cohort` chosen, and the block size where clients are trained in blocks.

    The choice depends on the model, the settings and the kind of device; a resolved scenario is returned as it is.

    Raises:
        ScenarioError: "stacked" was asked for and the model cannot be trained so.
    """
    client = scenario.client
    if client.cohort == "each":
        return scenario
    where = torch.device(device)
    if where.type == "cuda" and not torch.cuda.is_available():
        return scenario  # the engine says so, better than we could
    examples = federation.train[: client.batch_size].to(where)
    model = flat_network(scenario, federation, where)
    num_clients = scenario.server.clients_per_round or federation.num_clients
    chosen, size, reason = cohort.choose(model, client, examples.x, examples.y, num_clients, _load(scenario))
    if chosen == "stacked" and client.hooks:
        reason = _hooks_misfit(model, examples, scenario)
        chosen = "stacked" if reason is None else "each"
    if reason is not None and client.cohort == "stacked":
        problem = (
            f'client.cohort: "stacked" is not possible with {scenario.model.plugin_name}: {reason}; use "each"'
        )
        raise ScenarioError(scenario.name, [problem])
    changes = {"cohort": chosen, "block_size": size if chosen == "stacked" else client.block_size}
    return scenario.model_copy(update={"client": client.model_copy(update=changes)})
