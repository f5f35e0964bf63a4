"""Small studies on digits, what they leave, and naive ways to recompute it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w

from fedsim.errors import ScenarioError
from fedsim.study import conductor
from fedsim.study.design import Design
from fedsim.study.perform import Order, Outcome

BASE: dict[str, Any] = {
    "rounds": 2,
    "data": {"name": "digits", "limit": 120},
    "partition": {"name": "iid", "num_clients": 4},
    "model": {"name": "logistic"},
    "client": {"lr": 0.1, "batch_size": 8, "cohort": "each"},
    "server": {"clients_per_round": 2},
    "strategy": {"name": "fedavg"},
    "engine": {"backend": "local"},
}
DIVERGES = {"strategy": "fedavg", "label": "wild", "changes": ["client.lr=3e38"]}
"""A method whose updates are not finite: it fails by itself in its first round."""


def scenario(folder: Path, file: str = "small", **tables: Any) -> Path:
    """Write a scenario, with entries of its tables changed."""
    table = {
        **BASE,
        **{key: {**BASE.get(key, {}), **new} if isinstance(new, dict) else new for key, new in tables.items()},
    }
    path = folder / f"{file}.toml"
    path.write_text(tomli_w.dumps(table), encoding="utf-8")
    return path


def design(path: Path, *methods: Any, changes: Sequence[str] = (), **options: Any) -> Design:
    """Return a study of a scenario file."""
    asked = {"methods": list(methods)} if methods else {}
    return Design.load(path, list(changes), {**asked, **options})


def problems(path: Path, *methods: Any, changes: Sequence[str] = (), **options: Any) -> list[str]:
    """Return what is wrong with a study, a line each."""
    with pytest.raises(ScenarioError) as caught:
        design(path, *methods, changes=changes, **options)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def study_of(folder: Path) -> dict[str, Any]:
    """Read study.json by the letter of JSON, which knows no NaN."""

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    found: dict[str, Any] = json.loads((folder / "study.json").read_text(), parse_constant=refused)
    return found


def told(folder: Path) -> dict[str, Any]:
    """Return study.json without what a clock says."""
    found = study_of(folder)
    for run in found["runs"]:
        del run["seconds"]
    return found


def summary(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Return the summary of one entry of study.json's runs."""
    found: dict[str, Any] = json.loads((folder / run["folder"] / "summary.json").read_text())
    return found


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def last_accuracies(folder: Path, run: dict[str, Any]) -> dict[int, float]:
    """Return client -> accuracy of the last evaluated round, row by row."""
    found: dict[int, tuple[int, float]] = {}
    for row in pd.read_parquet(folder / run["folder"] / "clients.parquet").itertuples():
        if not math.isnan(row.test_accuracy) and row.round >= found.get(row.client, (-1, 0.0))[0]:
            found[row.client] = row.round, row.test_accuracy
    return {client: accuracy for client, (_, accuracy) in found.items()}


def entry(study: dict[str, Any], method: str, metric: str, scenario_name: str = "small") -> dict[str, Any]:
    """Return the entry of study.json's results about a method and a measure."""
    (found,) = [
        each
        for each in study["results"]
        if (each["scenario"], each["method"], each["metric"]) == (scenario_name, method, metric)
    ]
    return dict(found)


def copied(folder: Path, target: Path) -> Path:
    """Return a copy of a study folder to do harm to."""
    shutil.copytree(folder, target)
    return target


class Counted:
    """Counts the runs that are carried out, in the place of `perform`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        real = conductor.perform

        def counting(order: Order, tell: Callable[[int], None]) -> Outcome:
            self.names.append(order.name)
            return real(order, tell)

        monkeypatch.setattr(conductor, "perform", counting)

    def during(self, act: Callable[[], Any]) -> list[str]:
        """Return the runs carried out meanwhile."""
        before = len(self.names)
        act()
        return self.names[before:]
