"""The driver is killed or interrupted: its workers go with it, and what was reached can be read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from fedsim.engine import board, scratch
from tests.test_cli import SMALL, spawn

pytestmark = pytest.mark.slow

BEGUN_S = 90.0
GONE_S = 15.0


@contextmanager
def training(folder: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A run on two Ray workers that is in its rounds, and the processes it has started."""
    (folder / "small.toml").write_text(SMALL)
    changes = ["rounds=100000", "engine.backend=ray", "engine.workers=2", "strategy.name=scaffold"]
    options = [word for change in changes for word in ("--set", change)]
    process = spawn("run", "small.toml", *options, "--out", "out", folder=folder)
    started: set[int] = set()
    try:
        log, deadline = folder / "out" / "log.txt", time.monotonic() + BEGUN_S
        while not (log.exists() and "strategy" in log.read_text()):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no round within its time"
            time.sleep(0.2)
        time.sleep(1.0)
        started = offspring(process.pid)
        yield process, started
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for pid in started & set(alive()):
            os.kill(pid, signal.SIGKILL)


def alive() -> dict[int, int]:
    """Return process -> its parent, of all that run."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state != "Z":
            found[int(place.name)] = int(parent)
    return found


def offspring(process: int) -> set[int]:
    """Return the processes a process has started, and those that they have."""
    parents, found = alive(), {process}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process}


def workers(processes: set[int]) -> set[int]:
    """Return which of them are workers."""
    found = set()
    for pid in processes & set(alive()):
        try:
            if b"ray::Worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
        except OSError:
            continue
    return found


def left_after(processes: set[int], seconds: float) -> set[int]:
    """Return who is still there after that time, or as soon as nobody is."""
    deadline = time.monotonic() + seconds
    while (left := processes & set(alive())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def files() -> set[Path]:
    return {path for folder in board.FOLDERS for path in folder.glob("fedsim-f*")}


def test_workers_do_not_outlive_a_driver_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files()
    with training(tmp_path) as (process, started):
        ours = workers(started)
        assert len(ours) == 2
        assert files() - before
        process.kill()
        process.wait()
        assert left_after(ours, GONE_S) == set()
    monkeypatch.setattr(scratch, "YOUNG_S", -1.0)
    board.Boards()  # what the next run does first
    assert files() <= before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminated"])
def test_an_interrupted_run_ends_in_seconds_and_can_be_read(tmp_path: Path, number: signal.Signals) -> None:
    before = files()
    with training(tmp_path) as (process, started):
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal sends it
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 45
        assert process.returncode == 130, err
        assert "Traceback" not in out + err
        assert err.strip().splitlines()[-1] == "interrupted"
        assert left_after(started, GONE_S) == set()
    assert files() <= before
    folder = tmp_path / "out"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["rounds"] > 0
    # Whatever the moment: as many rounds in each table as the summary says.
    rounds, clients = (pd.read_parquet(folder / f"{name}.parquet") for name in ("rounds", "clients"))
    assert rounds["round"].tolist() == list(range(summary["rounds"] + 1))
    assert clients.groupby("round").size().tolist() == [4] * (summary["rounds"] + 1)
    assert (folder / "report.html").exists()
