"""A run on this machine: scenario in, run folder out, with progress on the terminal."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
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
from fedsim.interrupt import heed
from fedsim.lock import RunLock
from fedsim.profile import Stopwatch, tables
from fedsim.resume import Saved, refuse_changes, state_file, states_folder
from fedsim.rounds import Callback, Round
from fedsim.run_folder import CHECKPOINT, default_folder, refuse_used
from fedsim.scenario import Scenario
from fedsim.server_app import build_federation, conduct

QUIET_S = 15.0
"""Longest silence of a run whose output is no terminal."""


def simulate(
    path: str | Path, overrides: Sequence[str] = (), out: Path | None = None, *, profile: bool = False
) -> Path:
    """Run a scenario on virtual clients and return the run folder.

    Args:
        path: A scenario file, or the name of a bundled one.
        overrides: "key=value" changes.
        out: The run folder; None makes a new one under runs/.
        profile: Say at the end where the time went and how busy each worker was.

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
    _carry_out(console, scenario, federation, folder)
    for table in tables(folder) if profile else ():
        console.print(table)
    return folder


def resume(folder: Path, overrides: Sequence[str] = ()) -> Path:
    """Take up a run where its last checkpoint left it, or at its start when it has none yet; return its folder.

    A run that is finished is left as it is.

    Args:
        folder: The run folder.
        overrides: "key=value" changes of what may change, see `EngineSettings.movable`.

    Raises:
        DataError: The folder holds no run that can be taken up, another process has it, or the data have changed.
        FedSimError: As for `simulate`.
    """
    console = Console()
    if not _is_finished(folder):
        with RunLock(folder) as lock:
            if not _is_finished(folder):  # it may have ended while we looked
                return _go_on(console, folder, overrides, lock)
    if overrides:
        raise DataError(
            f"{folder}: is finished, so {', '.join(overrides)} would change nothing; a run that goes on from its "
            f"model is begun with --set server.initial={folder / 'model.safetensors'}"
        )
    console.print(f"{folder} is finished; there is nothing to resume", highlight=False, soft_wrap=True)
    return folder


def _go_on(console: Console, folder: Path, overrides: Sequence[str], lock: RunLock) -> Path:
    saved = Saved.read(folder)
    scenario = Scenario.load(folder / "scenario.toml", overrides)
    if saved is not None:
        saved.refuse_another_scenario(scenario)
    else:
        refuse_changes(Scenario.load(folder / "scenario.toml").table(), scenario, str(folder))
    federation = build_federation(scenario)
    if saved is not None:
        saved.refuse_other_data(scenario, federation)
    console.print(_headline(scenario, federation), highlight=False)
    reached = (
        f"after round {saved.last.number}" if saved is not None else "from the start: it has no checkpoint yet"
    )
    console.print(f"goes on {reached}", highlight=False)
    return _carry_out(console, scenario, federation, folder, lock, saved)


def _is_finished(folder: Path) -> bool:
    """Say whether a run is finished.

    Raises:
        DataError: It is not, and cannot be taken up; says why.
    """
    if not (folder / "scenario.toml").is_file():
        what = "has no scenario.toml, so it is no run folder" if folder.is_dir() else "is no folder"
        raise DataError(f"{folder}: {what}; give one that `run` has made")
    if state_file(folder).exists():
        return False
    if _status(folder) == "finished":
        return True
    if not (folder / CHECKPOINT).is_dir():
        reason = "the version that wrote it made none"
    elif Scenario.load(folder / "scenario.toml").engine.checkpoint_every == 0:
        reason = "it was run with engine.checkpoint_every = 0"
    elif _num_rows(folder / "rounds.parquet") > 1:  # round 0 ends with a checkpoint
        reason = "its strategy allows none, log.txt says why"
    else:
        return False
    raise DataError(
        f"{folder}: holds no checkpoint to go on from, {reason}; begin again with: python run_sim.py run "
        f"{folder / 'scenario.toml'}"
    )


def _num_rows(table: Path) -> int:
    return int(pq.ParquetFile(table).metadata.num_rows) if table.is_file() else 0


def _status(folder: Path) -> str:
    try:
        return str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def _carry_out(
    console: Console,
    scenario: Scenario,
    federation: Federation,
    folder: Path,
    lock: RunLock | None = None,
    saved: Saved | None = None,
) -> Path:
    watch = Stopwatch()
    device = "cuda" if scenario.engine.gpus_per_worker > 0 else "cpu"
    app = LocalApp(scenario, federation, device)
    app.check()
    scenario = app.scenario
    with (
        open_grid(app, scenario.engine, states_folder(folder)) as grid,
        _progress(console, scenario.rounds) as show,
    ):
        try:
            summary = conduct(
                scenario, federation, grid, folder, callbacks=[show, heed], lock=lock, saved=saved, watch=watch
            )
        except (FedSimError, KeyboardInterrupt):
            if folder.is_dir():
                console.print(f"what was reached is in {folder}", highlight=False, soft_wrap=True)
            if state_file(folder).exists():
                console.print(f"go on with: python run_sim.py resume {folder}", highlight=False, soft_wrap=True)
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
        every, said, last = max(1, num_rounds // 10), [time.monotonic()], [-num_rounds]

        def plain(finished: Round) -> None:
            since = finished.number - last[0]
            # Rather in a round that says how well clients are served.
            due = since >= every and (finished.evaluated or since >= 2 * every)
            if due or time.monotonic() - said[0] > QUIET_S or finished.number == num_rounds:
                said[0], last[0] = time.monotonic(), finished.number
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
    clock = "" if finished.system is None else f"at {finished.system.end_s:,.0f} simulated s  "
    return (clock + _reached(finished)).rstrip()


def _reached(finished: Round) -> str:
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
