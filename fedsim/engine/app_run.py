"""A run of somebody else's Flower app on our grids: `run_sim.py app`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from fedsim.engine import flower, open_grid
from fedsim.engine.app_grid import AppGrid, Tally
from fedsim.engine.apps import FlowerApp, FlowerClients, app_traceback, find_app
from fedsim.errors import AppError, AppRunError, FedSimError

if TYPE_CHECKING:
    from fedsim.settings import EngineSettings


def run_app(
    folder: str | Path,
    num_nodes: int,
    changes: Sequence[str],
    settings: EngineSettings,
    say: Callable[[str], None],
) -> Tally:
    """Run a Flower app and return what became of its messages.

    Args:
        folder: Where its pyproject.toml is.
        num_nodes: Number of nodes K.
        changes: Changes of its configuration, as for `flwr run --run-config`.
        settings: Backend, workers, threads, share of a GPU.
        say: Takes a line for the user.

    Raises:
        AppError: The app cannot be loaded.
        AppRunError: Its ServerApp raised; or messages were sent and no client answered any of them.
        EngineError: Workers, Ray or a device cannot be had.
    """
    if num_nodes < 1:
        raise AppError(f"--nodes: must be at least 1, got {num_nodes}")
    app = find_app(folder, changes)
    server = app.load_server()
    app.load_client()  # a mistake in it is told before workers start
    clients = FlowerClients(app, num_nodes, hide_gpus=settings.gpus_per_worker == 0)
    workers = "this process" if settings.backend == "local" else "Ray workers"
    say(f"{app.name} {app.version}: {num_nodes} nodes in {workers}")
    with open_grid(clients, settings) as inner:
        grid = AppGrid(inner, flower.described_run(app.name, app.version, app.overrides))
        began = time.perf_counter()
        try:
            server(grid, _server_context(app))
        except FedSimError:
            raise
        except Exception as error:
            raise AppRunError(f"{app.server} failed\n{app_traceback(error, app.folder)}") from error
        finally:
            grid.tally.took_s = time.perf_counter() - began
            for line in grid.tally.lines():
                say(line)
    if grid.tally.fruitless:
        raise AppRunError(_fruitless(grid.tally, app))
    return grid.tally


def _server_context(app: FlowerApp) -> Context:
    return Context(
        run_id=flower.RUN_ID,
        node_id=flower.SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(app.run_config),
    )


def _fruitless(tally: Tally, app: FlowerApp) -> str:
    assert tally.first is not None
    node, kind, reason = tally.first
    return f"{app.client}: every message failed; the first, {kind} of node {node}:\n{reason}"
