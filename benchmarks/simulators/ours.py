"""This platform, along the path of `run_sim.py run` but for the run folder and its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, RecordDict

from benchmarks.simulators.contender import Meter
from benchmarks.simulators.workloads import NUM_WORKERS, Floats, Workload
from clients.app import LocalApp
from fedsim.engine import open_grid
from fedsim.engine.base import State
from fedsim.engine.task import Desk
from fedsim.parameters import Layout
from fedsim.rounds import Round, run_rounds
from fedsim.scenario import Scenario
from fedsim.server_app import strategy_of
from fedsim.wire import CLIENT, EXAMPLES, Block, num_weights, pack_arrays, unpack_arrays, unpack_request


class NoOp:
    """Clients that copy the weights they get and send back what changed, which is nothing."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients

    def keeps_state(self, kind: str) -> bool:
        del kind
        return False

    def width(self, kind: str, content: RecordDict) -> int:
        return num_weights(content) if kind == "train" else 0

    def units(self, kind: str, clients: Sequence[int]) -> list[list[int]]:
        del kind
        return [[client] for client in clients]

    def cost(self, kind: str, client: int) -> float:
        del kind, client
        return 1.0

    def reads_state(self, kind: str) -> bool:
        del kind
        return False

    def run(
        self, kind: str, content: RecordDict, units: Sequence[Any], states: Sequence[State], desk: Desk
    ) -> tuple[Block, list[State]]:
        request = unpack_request(content)
        clients = [client for unit in units for client in unit]
        numbers = {CLIENT: np.asarray(clients, np.float64), EXAMPLES: np.ones(len(clients))}
        if kind == "train":
            for row in desk.rows(len(request.theta)):
                local = request.theta.copy()
                np.subtract(request.theta, local, out=row)
        return Block(tuple(clients), numbers, posted=kind == "train"), list(states)


def ray(workload: Workload, meter: Meter) -> None:
    """Make rounds on resident Ray workers of one thread."""
    _run(workload, workload.scenario("engine.backend=ray"), meter)


def local(workload: Workload, meter: Meter) -> None:
    """Make rounds in this process, with as many threads as others have workers."""
    _run(workload, workload.scenario("engine.backend=local", f"engine.threads_per_worker={NUM_WORKERS}"), meter)


def single(workload: Workload, meter: Meter) -> None:
    """Make rounds in this process, on one thread: two of them suffer most from what else a machine does."""
    _run(workload, workload.scenario("engine.backend=local"), meter)


def _run(workload: Workload, scenario: Scenario, meter: Meter) -> None:
    network = workload.network().network
    app: Any = NoOp(workload.federation.num_clients)
    if workload.trains:
        app = LocalApp(scenario, workload.federation)
        app.check()

    def told(finished: Round) -> None:
        if finished.number == 0:  # the evaluation of the initial model
            meter.begin()
        else:
            meter.lap(lambda: flat(finished.arrays))

    strategy: Any = strategy_of(scenario, min_available_nodes=app.num_clients)
    if not workload.evaluates:
        strategy.configure_evaluate = strategy.aggregate_evaluate = lambda *_: []
    with open_grid(app, scenario.engine) as grid, meter.until_stopped():
        run_rounds(
            strategy,
            grid,
            pack_arrays({name: value.detach().numpy() for name, value in network.named_parameters()}),
            num_rounds=scenario.evaluation.every,  # never reached
            evaluate_every=scenario.evaluation.every,
            callbacks=[told],
        )


def flat(arrays: ArrayRecord) -> Floats:
    named = unpack_arrays(arrays)
    return Layout.of(named).join(named)
