"""The Flower ServerApp: scenario -> federation -> model -> strategy -> rounds -> run folder.

`conduct` is the whole of it, for any grid: ours in a simulation, Flower's under `flwr run`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from clients.app import alone
from clients.evaluation import evaluate
from clients.resident import flat_network, initial_weights
from clients.steps import set_precision
from fedsim import plugins
from fedsim.averages import Average
from fedsim.datasets import data_root
from fedsim.engine.base import BlockGrid
from fedsim.engine.states import States
from fedsim.errors import FedSimError, ScenarioError
from fedsim.federation import Federation
from fedsim.lock import RunLock
from fedsim.log_file import log_file
from fedsim.metrics import SUMS, measured
from fedsim.parameters import tensor_of
from fedsim.profile import PROFILE, Stopwatch, lines
from fedsim.report import save_partition_figure, write_report
from fedsim.resume import Checkpoints, Saved, hashes_of
from fedsim.rounds import Callback, CentralEvaluation, Round, run_rounds
from fedsim.run_folder import RunFolder, default_folder, model_digest, refuse_used
from fedsim.scenario import Scenario, overrides_of
from fedsim.sinks import Status
from fedsim.system.crowd import Crowd
from fedsim.system.model import Demand, System
from fedsim.tracking import Tracking
from fedsim.wire import pack_arrays, unpack_arrays
from strategies.flower import RuleStrategy
from strategies.stock import StockStrategy
from strategies.stock_options import StockOptions

log = logging.getLogger("fedsim")


def conduct(
    scenario: Scenario,
    federation: Federation,
    grid: Grid,
    folder: Path,
    *,
    callbacks: Sequence[Callback] = (),
    lock: RunLock | None = None,
    saved: Saved | None = None,
    watch: Stopwatch | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Run a scenario over a grid and leave a run folder, whatever happens after the first round.

    Args:
        scenario: The resolved scenario.
        federation: Who owns what.
        grid: Where the clients are.
        folder: The run folder.
        callbacks: Told about every round, after the run folder.
        lock: Held by the caller, on the folder of a run that is taken up; None makes a new run.
        saved: The checkpoint to go on from; None begins with round 0.
        watch: Has run since the caller began; None begins now.
        report: Draw the page and the partition; without, `run_sim.py report` does it at any time.

    Returns:
        The summary.

    Raises:
        FedSimError: The run cannot go on; the folder holds what was reached.
        KeyboardInterrupt: Passed on after the folder is written.
    """
    watch = watch or Stopwatch()
    if lock is None:
        refuse_used(folder)
        with RunLock(folder):
            run = RunFolder(folder, scenario, federation)
            return _conduct(scenario, federation, grid, run, callbacks, None, watch, report)
    run = RunFolder(folder, scenario, federation, saved.position if saved is not None else {})
    return _conduct(scenario, federation, grid, run, callbacks, saved, watch, report)


def _conduct(
    scenario: Scenario,
    federation: Federation,
    grid: Grid,
    run: RunFolder,
    callbacks: Sequence[Callback],
    saved: Saved | None,
    watch: Stopwatch,
    report: bool,
) -> dict[str, Any]:
    folder = run.path
    with log_file(folder / "log.txt"):
        log.info("scenario %s, seed %d, partition %s", scenario.name, scenario.seed, federation.manifest["sha256"])
        if saved is not None:
            log.info("resumed after round %d", saved.last.number)
        for note in run.changes():
            log.warning("%s", note)
        for worker in grid.usage().workers if isinstance(grid, BlockGrid) else ():
            log.info("%s is process %d on %s", worker.name, worker.pid, worker.node)
        status: Status = "failed"
        reason = None
        tracking = Tracking(run, scenario, saved.position if saved is not None else None)
        try:
            if report:
                save_partition_figure(folder)
            _rounds(scenario, federation, grid, run, [tracking, *callbacks], saved, watch)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            log.warning("interrupted")
            raise
        except FedSimError as error:
            reason = str(error)
            log.error("%s", error)  # noqa: TRY400 - the message is written to be read without a traceback
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            log.exception("the run failed")
            raise
        finally:
            used = watch.found(grid.usage()) if isinstance(grid, BlockGrid) else None
            _leave(run, status, reason, used, tracking, report=report)
    return run.summary


def _leave(
    run: RunFolder,
    status: Status,
    reason: str | None,
    used: dict[str, Any] | None,
    tracking: Tracking,
    *,
    report: bool,
) -> None:
    """Write what was reached; trouble with that must not hide why a run ended."""
    try:
        summary = run.close(status, reason)
        if report:
            write_report(run.path)
        if used is not None:
            (run.path / PROFILE).write_text(json.dumps(used, indent=2), encoding="utf-8")
            for line in lines(used):
                log.info("%s", line)
        log.info("%s after %d rounds", status, summary["rounds"])
        tracking.finish(status)  # the journal is still there for a sink that is behind
        if status == "finished":
            run.clear()
    except Exception:
        log.exception("the run folder could not be completed")
        if status == "finished":
            raise
    finally:
        tracking.finish("failed")  # where it was not told of the end above


def build_federation(scenario: Scenario) -> Federation:
    """Read the data and divide them among the clients.

    Raises:
        DataError: Data are missing or cannot be divided as asked.
        ScenarioError: More clients a round than there are, or a sink whose package is not installed.
    """
    absent = list(scenario.tracking.missing()) if scenario.tracking is not None else []
    if absent:
        raise ScenarioError(scenario.name, absent)
    federation = Federation.build(
        scenario.data,
        scenario.partition,
        scenario.seed,
        data_root(),
        validation=scenario.evaluation.validation,
    )
    wanted = scenario.server.clients_per_round
    if wanted is not None and wanted > federation.num_clients:
        most = f"must be at most {federation.num_clients}, as many clients as there are"
        raise ScenarioError(scenario.name, [f"server.clients_per_round: {most}, got {wanted}"])
    groupless = [
        f"evaluation.metrics.{place}: {plugins.spelled(metric, 'fedsim.metrics')} needs groups, and data set "
        f"{scenario.data.plugin_name} names none; leave it out, or take one that does, such as heart"
        for place, metric in enumerate(scenario.evaluation.metrics)
        if metric.needs_groups and not federation.group_names
    ]
    if groupless:
        raise ScenarioError(scenario.name, groupless)
    system_of(scenario, federation)  # a trace that cannot be used fails before workers start
    return federation


def system_of(scenario: Scenario, federation: Federation) -> System | None:
    """Return what the clients' devices do, where the scenario has a table [system].

    Raises:
        DataError: A trace cannot be used; says why.
    """
    if scenario.system is None:
        return None
    client, method = scenario.client, scenario.strategy.local()
    demand = Demand(
        np.asarray(federation.train_sizes),
        client.batch_size,
        client.local_epochs,
        0 if method is None else method.beside_epochs(client.local_epochs),
    )
    return System(scenario.system, Crowd(scenario.seed, federation.num_clients, data_root()), demand)


def strategy_of(
    scenario: Scenario, federation: Federation | None = None, *, min_available_nodes: int = 1
) -> RuleStrategy | StockStrategy:
    """Return the Flower strategy a scenario asks for.

    Args:
        scenario: The experiment.
        federation: Who owns what; a scenario with a table [system] needs it.
        min_available_nodes: Nodes to wait for before a round starts.
    """
    assert scenario.system is None or federation is not None, "a system model needs to know the clients' data"
    settings: dict[str, Any] = {
        "server_lr": scenario.server.lr,
        "server_lr_decay": scenario.server.lr_decay,
        "clients_per_round": scenario.server.clients_per_round,
        "min_available_nodes": min_available_nodes,
        "seed": scenario.seed,
        "max_failures": scenario.engine.max_failures,
        "system": None if federation is None else system_of(scenario, federation),
    }
    timeout = scenario.engine.timeout_s
    if isinstance(scenario.strategy, StockOptions):
        return StockStrategy(scenario.strategy, timeout=timeout, **settings)
    return RuleStrategy(scenario.strategy, timeout=timeout, **settings)


def _rounds(
    scenario: Scenario,
    federation: Federation,
    grid: Grid,
    run: RunFolder,
    callbacks: Sequence[Callback],
    saved: Saved | None,
    watch: Stopwatch,
) -> None:
    strategy = strategy_of(scenario, federation, min_available_nodes=federation.num_clients)
    average = Average.of(
        scenario.server.average,
        scenario.server.clients_per_round or federation.num_clients,
        federation.num_clients,
    )
    states: States | None = getattr(grid, "states", None)
    every, hashes = scenario.engine.checkpoint_every, hashes_of(scenario, federation)
    checkpoints: list[Callback] = [Checkpoints(run, scenario, hashes, states)] if every > 0 else []
    weights = initial_weights(scenario, federation)
    run.began_with = {"data_sha256": hashes["examples"], "initial_sha256": model_digest(weights)}
    if saved is not None:
        saved.give_back(strategy, average, states)
        initial, served = saved.last.arrays, saved.last.served
    else:
        initial, served = pack_arrays(weights), None
    run.started(served)
    watch.ready()
    run_rounds(
        strategy,
        grid,
        initial,
        num_rounds=scenario.rounds,
        evaluate_every=scenario.evaluation.every,
        central=_central_evaluation(scenario, federation),
        callbacks=[watch, *(watch.around(callback) for callback in (run, *callbacks, *checkpoints))],
        timeout=scenario.engine.timeout_s,
        average=average,
        after=saved.last if saved is not None else None,
        keep_every=every,
    )


def _central_evaluation(scenario: Scenario, federation: Federation) -> CentralEvaluation | None:
    """Return a function that evaluates on the common test set, if the data have one."""
    if federation.common_test is None:
        return None
    if any(hook.predicts for hook in scenario.client.hooks):
        return None  # predictions come from each client's own train shard, which the server does not have
    device = torch.device("cuda" if scenario.engine.gpus_per_worker > 0 else "cpu")
    set_precision(scenario.engine.precision, device)
    model = flat_network(scenario, federation, device)
    test = federation.common_test.to(device)
    # Groups may be known of the clients' examples alone.
    known = {
        name: metric
        for name, metric in measured(scenario.evaluation.metrics).items()
        if test.groups is not None or not metric.needs_groups
    }
    num_groups = len(federation.group_names)

    def central(server_round: int, arrays: ArrayRecord) -> dict[str, float | list[float]]:
        del server_round
        theta = tensor_of(model.layout.join(unpack_arrays(arrays))).to(device)
        found = evaluate(model, theta, test, [len(test)], known, num_groups=num_groups)
        return {name: column[0].tolist() for name, column in found.items() if not name.startswith(SUMS)}

    return central


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario named in the run configuration."""
    scenario = Scenario.load(
        str(context.run_config["scenario"]), overrides_of(str(context.run_config["overrides"]))
    )
    federation = build_federation(scenario)
    app = alone(scenario, federation)
    app.check()
    scenario = app.scenario
    folder = default_folder(scenario).resolve()

    def say(finished: Round) -> None:
        log.info("round %d of %d", finished.number, scenario.rounds)

    conduct(scenario, federation, grid, folder, callbacks=[say])
    print(folder)
