"""What is read of the run folders of a study."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedsim import files
from fedsim.errors import DataError
from fedsim.fairness import better

DIVERGED = 10.0
"""A trial that ends with a loss so many times the untrained model's is never chosen, whatever its accuracy."""

RUNS, TRIALS, RESULTS, LOG = "runs", "tuning", "study.json", "log.txt"


def summary_of(folder: Path) -> dict[str, Any]:
    """Return the summary of a run; empty if it has none yet.

    Raises:
        DataError: It cannot be read.
    """
    path = folder / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove the folder, and the run is made again") from error


def note_failure(folder: Path, error: str) -> None:
    """Leave word in the folder of a run that could not do so itself: it never began, or its process died."""
    try:
        known = summary_of(folder)
    except DataError:
        known = {}
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / "summary.json", json.dumps({**known, "status": "failed", "error": error}, indent=2))


def is_finished(folder: Path) -> bool:
    """Say whether a run is finished and whole, so that it need not be made again."""
    return status_of(folder) == "finished"


def status_of(folder: Path) -> str:
    """Return how a run stands: "finished", "failed", "damaged" where it is to be made again, or "missing"."""
    try:
        status = summary_of(folder).get("status")
    except DataError:
        return "damaged"
    if status == "finished":
        return "finished" if damage_of(folder) is None else "damaged"
    return "failed" if status == "failed" else "missing"


def damage_of(folder: Path) -> str | None:
    """Return what is wrong with the folder of a finished run, or None."""
    try:
        pq.read_metadata(folder / "clients.parquet")
        for name in ("manifest.json", "environment.json"):
            json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        return str(error).splitlines()[0]
    return None


def losses_of(folder: Path) -> tuple[float, float]:
    """Return the clients' mean test loss at the beginning and at the end of a run, NaN where there is none."""
    rows = pd.read_parquet(folder / "clients.parquet", columns=["round", "test_loss"])
    means = rows.groupby("round")["test_loss"].mean().dropna()
    return (float(means.iloc[0]), float(means.iloc[-1])) if len(means) else (math.nan, math.nan)


def measures_of(summary: Mapping[str, Any], column: str) -> dict[str, float]:
    """Return a run's fairness block, NaN for what it has not.

    Args:
        summary: The run's.
        column: "test_accuracy" or "test_loss".
    """
    block = (summary.get("fairness") or {}).get(column) or {}
    return {name: float(value) if value is not None else math.nan for name, value in block.items()}


def score_of(folder: Path, metric: str) -> tuple[float, str | None]:
    """Return (score, error) of a trial's run: a measure of its accuracies, turned so that higher is better.

    A run that has not come to its end has neither.
    """
    try:
        summary = summary_of(folder)
        if summary.get("status") == "failed":
            return math.nan, str(summary.get("error"))
        if summary.get("status") != "finished":
            return math.nan, None
        began, ended = losses_of(folder)
    except (DataError, OSError, ValueError) as error:
        return math.nan, f"its folder is damaged: {str(error).splitlines()[0]}"
    if ended > DIVERGED * began:
        return math.nan, f"it diverged: its mean loss went from {began:.3g} to {ended:.3g}"
    value = measures_of(summary, "test_accuracy").get(metric, math.nan)
    if math.isnan(value):
        return math.nan, "no client could be evaluated"
    return value if better(metric, higher_is_better=True) != "lower" else -value, None


def outcome_of(folder: Path) -> tuple[NDArray[np.float64], str]:
    """Return what a run says of its clients.

    Returns:
        The accuracy of every client at its end, [K], NaN for those without test examples; and a hash of which
        clients were asked to train in which round.
    """
    columns = ["round", "client", "test_accuracy", "sampled", "failed"]
    rows = pd.read_parquet(folder / "clients.parquet", columns=columns)
    known = rows[rows["test_accuracy"].notna()]
    last = known[known["round"] == known["round"].max()]
    found = np.full(num_clients_of(folder), np.nan)
    found[last["client"].to_numpy(int)] = last["test_accuracy"].to_numpy(float)
    # Who failed was asked all the same; round 0 asks nobody to train.
    asked = rows[rows["sampled"] | (rows["failed"] & (rows["round"] > 0))].sort_values(["round", "client"])
    return found, hashlib.sha256(asked[["round", "client"]].to_numpy(np.int64).tobytes()).hexdigest()


def num_clients_of(folder: Path) -> int:
    """Return the number of clients of a run's federation."""
    return int(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["num_clients"])
