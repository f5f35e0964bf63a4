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
from numpy.typing import NDArray

from fedsim.errors import DataError
from fedsim.fairness import better

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
    about = {**summary_of(folder), "status": "failed", "error": error}
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "summary.json", json.dumps(about, indent=2))


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it finds the old text or the new one."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def is_finished(folder: Path) -> bool:
    """Say whether a run is finished."""
    return summary_of(folder).get("status") == "finished"


def measures_of(summary: Mapping[str, Any], column: str) -> dict[str, float]:
    """Return a run's fairness block, NaN for what it has not.

    Args:
        summary: The run's.
        column: "test_accuracy" or "test_loss".
    """
    block = (summary.get("fairness") or {}).get(column) or {}
    return {name: float(value) if value is not None else math.nan for name, value in block.items()}


def score_of(folder: Path, metric: str) -> tuple[float, str | None]:
    """Return (score, error) of a trial's run: a measure of its accuracies, turned so that higher is better."""
    summary = summary_of(folder)
    if summary.get("status") != "finished":
        return math.nan, str(summary.get("error") or "it has not been run to its end")
    value = measures_of(summary, "test_accuracy").get(metric, math.nan)
    if math.isnan(value):
        return math.nan, "no client could be evaluated"
    return value if better(metric, higher_is_better=True) != "lower" else -value, None


def last_accuracies(folder: Path) -> NDArray[np.float64]:
    """Return the accuracy of every client at the end of a run, [K]; NaN for those without test examples."""
    rows = pd.read_parquet(folder / "clients.parquet", columns=["round", "client", "test_accuracy"])
    rows = rows[rows["test_accuracy"].notna()]
    last = rows[rows["round"] == rows["round"].max()]
    found = np.full(num_clients_of(folder), np.nan)
    found[last["client"].to_numpy(int)] = last["test_accuracy"].to_numpy(float)
    return found


def samples_digest(folder: Path) -> str:
    """Return a hash of which clients were asked to train in which round."""
    rows = pd.read_parquet(folder / "clients.parquet", columns=["round", "client", "sampled", "failed"])
    # Who failed was asked all the same; round 0 asks nobody to train.
    asked = rows[rows["sampled"] | (rows["failed"] & (rows["round"] > 0))].sort_values(["round", "client"])
    return hashlib.sha256(asked[["round", "client"]].to_numpy(np.int64).tobytes()).hexdigest()


def num_clients_of(folder: Path) -> int:
    """Return the number of clients of a run's federation."""
    return int(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["num_clients"])
