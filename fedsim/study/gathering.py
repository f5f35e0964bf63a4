"""What a run folder of a study says of its run: its entry in study.json, and what its clients reached."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.environment import VERSIONS
from fedsim.errors import DataError
from fedsim.study.design import Run
from fedsim.study.folder import RUNS, losses_of, measures_of, outcome_of, summary_of

Record = dict[str, Any]


@dataclass
class Gathered:
    """A run of the design, and what is known of it.

    Attributes:
        run: What was to be run.
        record: Its entry in study.json.
        accuracies: Of every client at its end, [K]; None unless it is finished.
    """

    run: Run
    record: Record
    accuracies: NDArray[np.float64] | None

    @property
    def counts(self) -> bool:
        """Whether it may be compared."""
        return bool(self.record["status"] == "finished")


def gather(run: Run, folder: Path, *, ready: bool = True) -> Gathered:
    """Read the folder of a run; one that cannot be read counts as failed, and says why.

    Args:
        run: What was to be run.
        folder: The study folder.
        ready: Whether it is settled what is to be run: not before tuning has ended, whatever lies there.
    """
    where = folder / RUNS / run.id
    record: Record = {
        "scenario": run.scenario,
        "method": run.method,
        "partition": run.pair.partition,
        "seed": run.pair.seed,
        "status": "missing",
        "folder": f"{RUNS}/{run.id}",
        "digest": run.digest,
        "error": None,
        "rounds": 0,
        "seconds": None,
        **dict.fromkeys(("partition_sha256", "data_sha256", "initial_sha256", "samples_sha256", "model_sha256")),
        "commit": None,
        "commits": [],
        "versions": {},
        "notes": [],
        "measures": {},
        "loss": {},
        "first_loss": None,
        "central": None,
        "system": None,
    }
    if not ready:
        return Gathered(run, record, None)
    try:
        accuracies = _read(record, where)
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are among these
        said = str(error).splitlines()[0]
        record |= {
            "status": "failed",
            "error": f"its folder is damaged ({said}); the next `compare` makes it again",
        }
        return Gathered(run, record, None)
    return Gathered(run, record, accuracies)


def _read(record: Record, where: Path) -> NDArray[np.float64] | None:
    """Fill in the entry of a run; return its clients' accuracies if it is finished."""
    summary = summary_of(where)
    status = summary.get("status")
    record |= {
        "status": status if status in ("finished", "failed") else "missing",
        "error": summary.get("error"),
        "rounds": summary.get("rounds", 0),
        "seconds": (summary.get("seconds") or {}).get("total"),
        **{
            name: summary.get(name)
            for name in ("partition_sha256", "data_sha256", "initial_sha256", "model_sha256")
        },
    }
    if status != "finished":
        return None
    accuracies, samples = outcome_of(where)
    environment = json.loads((where / "environment.json").read_text(encoding="utf-8"))
    sessions = environment.get("sessions") or [environment]
    record |= {
        "samples_sha256": samples,
        "commit": environment.get("commit"),
        "commits": sorted({str(session.get("commit")) for session in sessions}),
        "versions": {
            "python": environment.get("python"),
            **{name: sessions[-1].get(name) for name in VERSIONS if name != "commit"},
        },
        "notes": [note for note in summary.get("notes", ()) if note.startswith("Resumed")],
        "measures": measures_of(summary, "test_accuracy"),
        "loss": measures_of(summary, "test_loss"),
        "first_loss": losses_of(where)[0],
        "central": summary.get("central"),
        "system": summary.get("system"),
    }
    return accuracies
