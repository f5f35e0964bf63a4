"""What a run was computed with: versions, commit and machine, anew for every session of a resumed run."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fedsim.errors import DataError
from fedsim.scenario import Scenario

PACKAGES = ("fedsim", "flwr", "flwr-datasets", "ray", "torch", "torchvision", "numpy", "pandas", "scipy")

VERSIONS = ("fedsim", "flwr", "torch", "numpy", "scipy", "commit", "processor", "gpu")
"""What may change a bit beside the scenario and the data."""


def with_session(path: Path, scenario: Scenario, first_round: int) -> dict[str, Any]:
    """Return what is known of a run's surroundings, this session the last of its "sessions".

    Args:
        path: What the sessions before wrote; not looked at when this one begins with round 0.
        scenario: The resolved scenario.
        first_round: The round this session begins with.

    Raises:
        DataError: The file cannot be read.
    """
    now = _environment(scenario)
    whole = now
    if first_round > 0:
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    session = {
        "began": time.strftime("%Y-%m-%d %H:%M:%S"),
        "first_round": first_round,
        "host": socket.gethostname(),
        "backend": scenario.engine.backend,
        "workers": scenario.engine.workers,
        **{name: now[name] for name in VERSIONS},
    }
    return {**whole, "sessions": [*whole.get("sessions", []), session]}


def changes(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader must know of a run that was not computed by one set of versions, in sentences."""
    notes = []
    for before, after in itertools.pairwise(sessions):
        others = [f"{n} ({before.get(n)} -> {after.get(n)})" for n in VERSIONS if before.get(n) != after.get(n)]
        if others:
            notes.append(
                f"Resumed at round {after['first_round']} with another {', '.join(others)}: bits may differ from "
                "those of a run without an interruption."
            )
    return notes


def versions() -> dict[str, Any]:
    """Return versions of packages, the commit and the machine, of this process."""
    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        **found,
        "commit": _commit(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cpu_cores": os.cpu_count(),
        "gpu": gpu,
    }


def _environment(scenario: Scenario) -> dict[str, Any]:
    return {
        **versions(),
        "seed": scenario.seed,
        "scenario_digest": scenario.digest(),
        "command": " ".join(sys.argv),
    }


def _commit() -> str | None:
    """Return the commit of the code, with a mark when it has been edited since that tells two edits apart."""
    here = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None or not git("status", "--porcelain"):
        return commit
    edited = hashlib.sha256((git("diff", "HEAD") or "").encode())
    for name in sorted((git("ls-files", "--others", "--exclude-standard", "--", "*.py") or "").splitlines()):
        edited.update(name.encode())
        if (here / name).is_file():
            edited.update((here / name).read_bytes())
    return f"{commit}+edited.{edited.hexdigest()[:8]}"
