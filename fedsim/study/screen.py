"""What a study shows on the terminal: what it is going to do, how far it is, and what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedsim.study.design import Design

QUIET_S = 30.0
"""Longest silence of a study whose output is no terminal."""


def say(console: Console, line: str) -> None:
    """Print a line as it is: labels have brackets, which are no markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@dataclass
class Standing:
    """How far the runs of a study are, in rounds."""

    total: int
    todo: Mapping[str, int]
    reached: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    failed: int = 0

    @property
    def rounds(self) -> int:
        """Rounds that are done."""
        return sum(self.reached.values())


def headline(design: Design) -> str:
    """Return what a study compares, in one line."""
    pairs, settings = len(design.pairs), design.settings
    drawn = "" if settings.partitions is None else f" on {len({p.partition for p in design.pairs})} partitions"
    count = len(design.bases) * len(design.methods) * pairs
    return (
        f"{design.name}: {', '.join(method.label for method in design.methods)} in "
        f"{', '.join(base.name for base in design.bases)}, {pairs} pair{'s' * (pairs > 1)}{drawn}, {count} runs; "
        f"baseline {settings.reference}"
    )


@contextmanager
def progress(console: Console, standing: Standing) -> Iterator[Any]:
    """Show one bar over all rounds of all runs on a terminal, and a line for each run everywhere."""
    total = sum(standing.todo.values())
    if not console.is_terminal:
        spoken = [time.monotonic()]

        def plain(line: str | None) -> None:
            if line is not None or time.monotonic() - spoken[0] > QUIET_S:
                spoken[0] = time.monotonic()
                done = f"{standing.finished}/{standing.total} runs, {100 * standing.rounds / total:.0f} % of rounds"
                say(console, f"[{done}] {line or ''}".rstrip())

        yield plain
        return
    columns = (
        TextColumn("{task.fields[runs]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task: TaskID = bar.add_task("", total=total, runs=f"0/{standing.total} runs")

        def drawn(line: str | None) -> None:
            failed = f", {standing.failed} failed" if standing.failed else ""
            runs = f"{standing.finished}/{standing.total} runs{failed}"
            bar.update(task, completed=standing.rounds, runs=runs)
            if line is not None:
                bar.console.print(line, highlight=False, markup=False)

        yield drawn


def tables(design: Design, found: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of each scenario: the tested measures, and what is significant."""
    tested = design.settings.metrics
    for base in design.bases:
        unit = "pairs" if design.settings.partitions is None else "seeds"
        table = Table(title=f"{base.name}: mean (deviation) over {unit}", title_justify="left")
        table.add_column("method", overflow="fold")
        for metric in tested:
            table.add_column(metric.replace("_", " "), justify="right")
        for method in design.methods:
            cells = [
                _cell(entry)
                for metric in tested
                for entry in found.get("results", ())
                if (entry["scenario"], entry["method"], entry["metric"]) == (base.name, method.label, metric)
            ]
            table.add_row(Text(method.label), *cells)
        yield table


def _cell(entry: Mapping[str, Any]) -> str:
    if entry["mean"] is None:
        return "-"
    spread = "" if entry["std"] is None else f" ({entry['std']:.4f})"
    difference = entry["difference"] or {}
    mark = ""
    if difference.get("significant"):
        mark = " +" if difference.get("improves") else " -"
    return f"{entry['mean']:.4f}{spread}{mark}"
