"""Where the time of a run went, and what each worker did: for the log, and for `--profile`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from fedsim.engine.usage import Usage
from fedsim.rounds import Callback, Round

PROFILE = "profile.json"
"""File of a run folder."""


class Stopwatch:
    """Adds up the phases of all rounds, and the time that callbacks take."""

    def __init__(self) -> None:
        self._seconds = {"train": 0.0, "aggregate": 0.0, "evaluate": 0.0, "report": 0.0}
        self._rounds = 0
        self._began = self._ready = time.perf_counter()
        self._first: float | None = None

    def ready(self) -> None:
        """Note that data are read, workers are up and the first round begins."""
        self._ready = time.perf_counter()

    def around(self, callback: Callback) -> Callback:
        """Return a callback whose time counts as "report"."""

        def timed(finished: Round) -> None:
            began = time.perf_counter()
            callback(finished)
            self._seconds["report"] += time.perf_counter() - began

        return timed

    def __call__(self, finished: Round) -> None:
        """Take note of a round; a callback."""
        if self._first is None:
            self._first = time.perf_counter() - self._began
        self._rounds += finished.number > 0
        for phase in ("train", "aggregate", "evaluate"):
            self._seconds[phase] += finished.seconds[phase]

    def found(self, usage: Usage) -> dict[str, Any]:
        """Return everything as plain data.

        Returns:
            seconds: Phase -> seconds: start (data, workers), until the first round begins; then, of all rounds,
                train and evaluate, waiting included, aggregate, report (tables, checkpoints, progress); of train
                and evaluate dispatch (requests divided, packed, sent), wait (nobody here had anything to do) and
                transfer (answers read and put together); first, from the start to the end of round 0; total.
            rounds: Rounds of training.
            workers: For each worker its name, node and process, seconds busy and in transfer, the share of the
                rounds' time it was busy, clients answered, restarts.
        """
        total, rounds = (time.perf_counter() - since for since in (self._began, self._ready))
        parts = {"dispatch": usage.dispatch_s, "wait": usage.wait_s, "transfer": usage.transfer_s}
        workers = [{**vars(worker), "busy_share": worker.busy_s / rounds} for worker in usage.workers]
        return {
            "seconds": {"start": total - rounds, **self._seconds, **parts, "first": self._first, "total": total},
            "rounds": self._rounds,
            "workers": workers,
        }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each worker, for the log."""
    for worker in found["workers"]:
        yield (
            f"{worker['name']} (process {worker['pid']} on {worker['node']}): {worker['answered']} answers, "
            f"busy {worker['busy_s']:.2f} s, {100 * worker['busy_share']:.0f} %, {worker['restarts']} restarts"
        )


def tables(folder: Path) -> list[Table]:
    """Return what `--profile` prints of a run folder."""
    found = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
    seconds, rounds = found["seconds"], max(1, found["rounds"])
    phases = Table(title="where the time went", title_justify="left")
    for title in ("phase", "s", "ms a round", "%"):
        phases.add_column(title, justify="left" if title == "phase" else "right")
    known = sum(seconds[phase] for phase in ("start", "train", "evaluate", "aggregate", "report"))
    rows = [
        ("start: data, workers", seconds["start"]),
        ("train", seconds["train"]),
        ("evaluate", seconds["evaluate"]),
        ("  of both: dispatch", seconds["dispatch"]),
        ("  of both: waiting for workers", seconds["wait"]),
        ("  of both: transfer", seconds["transfer"]),
        ("aggregate", seconds["aggregate"]),
        ("report", seconds["report"]),
        ("the rest", seconds["total"] - known),
        ("total", seconds["total"]),
    ]
    for name, value in rows:
        each = "" if name.startswith(("start", "total")) else f"{1000 * value / rounds:.1f}"
        phases.add_row(name, f"{value:.2f}", each, f"{100 * value / seconds['total']:.0f}")
    workers = Table(title="how busy each worker was", title_justify="left")
    for title in ("worker", "node", "process", "busy s", "busy %", "answers", "restarts"):
        workers.add_column(title, justify="left" if title in ("worker", "node") else "right")
    for worker in found["workers"]:
        workers.add_row(
            worker["name"].removeprefix("worker "),
            worker["node"],
            str(worker["pid"]),
            f"{worker['busy_s']:.2f}",
            f"{100 * worker['busy_share']:.0f}",
            str(worker["answered"]),
            str(worker["restarts"]),
        )
    return [phases, workers]
