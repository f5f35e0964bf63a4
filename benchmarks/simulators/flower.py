"""Flower's own simulation with the same ClientApp, and its FedAvg."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.simulators.contender import Meter
from benchmarks.simulators.ours import flat
from benchmarks.simulators.workloads import NUM_WORKERS, SCENARIO, Workload
from clients.client_app import app as trained
from fedsim.wire import ARRAYS, EXAMPLES, METRICS, pack_arrays


def simulation(workload: Workload, meter: Meter) -> None:
    """Make rounds of Flower's FedAvg in `run_simulation`, on as many actors as others have workers."""
    from flwr.simulation import run_simulation

    scenario, num_clients = workload.scenario(), workload.federation.num_clients
    sampled = scenario.server.clients_per_round or num_clients
    initial = {name: value.detach().numpy() for name, value in workload.network().network.named_parameters()}
    failed: list[BaseException] = []
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # its failures come to `failed`
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(
            fraction_train=sampled / num_clients,
            fraction_evaluate=0.0,
            min_train_nodes=sampled,
            min_available_nodes=num_clients,
        )
        try:
            with meter.until_stopped():
                _rounds(strategy, grid, pack_arrays(initial), meter)
        except BaseException as error:  # Flower would write a page about it to the terminal
            failed.append(error)

    resources = {"num_cpus": 1, "num_gpus": 0.0}
    backend: Any = {"init_args": {"num_cpus": NUM_WORKERS, "log_to_driver": False}, "client_resources": resources}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(server, _client_app(workload), num_clients, backend_config=backend)
    if failed:
        raise failed[0]


def _rounds(strategy: FedAvg, grid: Grid, arrays: Any, meter: Meter) -> None:
    """Do what `Strategy.start` does in a round without evaluation."""
    meter.begin()
    number = 0
    while True:
        number += 1
        replies = list(grid.send_and_receive(strategy.configure_train(number, arrays, ConfigRecord(), grid)))
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        arrays, _ = strategy.aggregate_train(number, replies)
        meter.lap(lambda: flat(arrays))  # noqa: B023 - looked at before the next round


def _client_app(workload: Workload) -> ClientApp:
    if not workload.trains:
        return _no_op()
    config: Any = {"scenario": SCENARIO, "overrides": "; ".join(workload.overrides())}
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # `run_simulation` has no run configuration to give, and lets nobody change that of a context.
        told = Context(context.run_id, context.node_id, context.node_config, context.state, config)
        reply = trained(message, told)
        context.state = told.state
        return reply

    return app


def _no_op() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        content = RecordDict({ARRAYS: message.content[ARRAYS], METRICS: MetricRecord({EXAMPLES: 1})})
        return Message(content, reply_to=message)

    return app
