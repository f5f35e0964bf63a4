"""A run on this machine: scenario in, run folder out, with progress on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from clients.app import LocalApp
from fedsim.engine import open_grid
from fedsim.errors import DataError, FedSimError
from fedsim.fairness import fairness_block
from fedsim.federation import Federation
from fedsim.rounds import Callback, Round
from fedsim.run_folder import default_folder, refuse_used
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, conduct

QUIET_S = 15.0
"""Longest silence of a run whose output is no terminal."""


def simulate(path: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> Path:
    """Run a scenario on virtual clients and return the run folder.

    Args:
        path: A scenario file, or the name of a bundled one.
        overrides: "key=value" changes.
        out: The run folder; None makes a new one under runs/.

    Raises:
        FedSimError: The scenario, the data, the engine or a client is at fault.
    """
    scenario = Scenario.load(path, overrides)
    folder = out or default_folder(scenario)
    refuse_used(folder)
    console = Console()
    federation = build_federation(scenario)
    console.print(_headline(scenario, federation), highlight=False)
    for note in scenario.notes():
        console.print(f"note: {note}", highlight=False)
    device = "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu"
    app = LocalApp(scenario, federation, device)
    app.check()
    scenario = app.scenario
    with open_grid(app, scenario.engine) as grid, _progress(console, scenario.rounds) as show:
        try:
            summary = conduct(scenario, federation, grid, folder, callbacks=[show])
        except (FedSimError, KeyboardInterrupt):
            if folder.is_dir():
                console.print(f"what was reached is in {folder}", highlight=False, soft_wrap=True)
            raise
    console.print(_summary_table(summary))
    return folder


def checked(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Scenario, DataError | None]:
    """Check all of a scenario that can be checked before a run.

    Returns:
        The scenario, resolved as far as its data are there, and why they could not be read, if so.

    Raises:
        ScenarioError: Something in it does not fit.
    """
    scenario = Scenario.load(path, overrides)
    try:
        federation = build_federation(scenario)
    except DataError as error:
        return scenario, error
    app = LocalApp(scenario, federation, "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu")
    app.check()
    return app.scenario, None


def _headline(scenario: Scenario, federation: Federation) -> str:
    server = scenario.server
    sampled = server.clients_per_round or federation.num_clients
    return (
        f"{scenario.name}: {scenario.method} on {scenario.data.plugin_name}, "
        f"{federation.num_clients} clients ({sampled} a round), {scenario.model.plugin_name}, "
        f"{scenario.rounds} rounds, seed {scenario.seed}"
    )


@contextmanager
def _progress(console: Console, num_rounds: int) -> Iterator[Callback]:
    """Show a bar on a terminal, and a plain line now and then elsewhere."""
    if not console.is_terminal:
        every, said = max(1, num_rounds // 10), [time.monotonic()]

        def plain(finished: Round) -> None:
            due = finished.number % every == 0 or time.monotonic() - said[0] > QUIET_S
            if due or finished.number == num_rounds:
                said[0] = time.monotonic()
                console.print(f"round {finished.number}/{num_rounds}  {_standing(finished)}", highlight=False)

        yield plain
        return
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[standing]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rounds", total=num_rounds, standing="")
        shown = [""]

        def drawn(finished: Round) -> None:
            shown[0] = _standing(finished) or shown[0]
            bar.update(task, completed=finished.number, standing=shown[0])

        yield drawn


def _standing(finished: Round) -> str:
    values = [answer.numbers["test_accuracy"] for answer in finished.evaluated if "test_accuracy" in answer.numbers]
    if not values:
        losses = [answer.numbers["loss"] for answer in finished.trained if "loss" in answer.numbers]
        return f"mean loss of the sampled clients {sum(losses) / len(losses):.3f}" if losses else ""
    block = fairness_block(values, [1] * len(values), higher_is_better=True)
    return f"accuracy {block['mean']:.3f}, worst 10 % {block['worst_10']:.3f}"


def _summary_table(summary: dict[str, object]) -> Table:
    fairness = summary["fairness"]
    assert isinstance(fairness, dict)
    table = Table(title="over all clients", title_justify="left")
    table.add_column("")
    names = ("mean", "std", "worst_10", "best_10", "min", "max")
    for name in names:
        table.add_column(name.replace("_", " ") + (" %" if "_" in name else ""), justify="right")
    for row in ("test_accuracy", "test_loss"):
        table.add_row(row.replace("_", " "), *(f"{fairness[row][name]:.4f}" for name in names))
    return table
