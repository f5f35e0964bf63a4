"""What a run folder holds, read tolerantly: every part may be missing, and what cannot be read is said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedsim import manifest
from fedsim.errors import DataError
from fedsim.fairness import fairness_block

Record = dict[str, Any]

FINAL_COLUMNS = ["test_accuracy", "test_loss", "test_examples", "train_examples", "name"]


@dataclass(frozen=True)
class RunFolder:
    """The contents of one run folder; parts that are not there are empty.

    Attributes:
        path: The folder.
        scenario: The resolved scenario as TOML text.
        environment, manifest, summary: The JSON files of these names.
        clients: One row per (round, client).
        rounds: One row per round.
        problems: What could not be read, one line each.
    """

    path: Path
    scenario: str = ""
    environment: Record = field(default_factory=dict)
    manifest: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    clients: pd.DataFrame = field(default_factory=pd.DataFrame)
    rounds: pd.DataFrame = field(default_factory=pd.DataFrame)
    problems: tuple[str, ...] = ()

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """Rows of `clients` that have a test accuracy, in order of round and client."""
        if not {"round", "client", "test_accuracy"} <= set(self.clients.columns):
            return pd.DataFrame(columns=["round", "client", "test_accuracy"])
        # A resumed run may have written a round twice: the later row is the one it went on from.
        rows = self.clients[self.clients["test_accuracy"].notna()]
        return rows.drop_duplicates(["round", "client"], keep="last").sort_values(["round", "client"])

    @cached_property
    def last_evaluated(self) -> int | None:
        """The last round after which clients were evaluated, or None."""
        return int(self.evaluations["round"].max()) if len(self.evaluations) else None

    @cached_property
    def final(self) -> pd.DataFrame:
        """The last evaluation, indexed by client: `FINAL_COLUMNS`, with NaN or 0 for what is unknown."""
        rows = self.evaluations
        rows = rows[rows["round"] == self.last_evaluated].set_index("client")
        ids = rows.index.to_numpy(np.int64)
        table = pd.DataFrame(index=pd.Index(ids, name="client"))
        for name in ("test_accuracy", "test_loss"):
            table[name] = rows[name].astype(float) if name in rows else np.nan
        for name, split in (("test_examples", "test"), ("train_examples", "train")):
            known = {k: int(sum(row)) for k, row in self.counts_by_client(split).items()}
            column = rows[name] if name in rows else pd.Series(0, index=rows.index)
            table[name] = [known.get(int(k), int(np.nan_to_num(float(column[k])))) for k in ids]
        names = manifest.names(self.manifest)
        table["name"] = [names.get(int(k), "") for k in ids]
        return table

    def counts_by_client(self, split: str) -> dict[int, list[int]]:
        """Return client -> examples of each class, from the manifest.

        Args:
            split: "train" or "test".
        """
        if split not in self._counts:
            self._counts[split] = manifest.counts(self.manifest, split)
        return self._counts[split]

    @cached_property
    def _counts(self) -> dict[str, dict[int, list[int]]]:
        return {}

    @cached_property
    def class_names(self) -> list[str]:
        """One name per class."""
        given = self.manifest.get("class_names") or []
        width = max([self.manifest.get("num_classes") or 0, *map(len, self.counts_by_client("train").values())])
        return [str(given[c]) if c < len(given) else str(c) for c in range(width)]

    def matrix(self, split: str) -> NDArray[np.int64]:
        """Return examples by client and class, [K, C], rows in order of the client number."""
        rows = sorted(self.counts_by_client(split).items())
        matrix = np.zeros((len(rows), len(self.class_names)), np.int64)
        for position, (_, counts) in enumerate(rows):
            matrix[position, : len(counts)] = counts[: matrix.shape[1]]
        return matrix

    @cached_property
    def num_clients(self) -> int:
        """Clients of the federation, by the manifest or else by the table."""
        in_table = self.clients["client"].nunique() if "client" in self.clients else 0
        return int(self.manifest.get("num_clients") or len(self.counts_by_client("train")) or in_table)

    def fairness(self, metric: str) -> Record:
        """Return the run's block of "test_accuracy" or "test_loss"; computed if the run wrote none."""
        block = (self.summary.get("fairness") or {}).get(metric)
        if block:
            return dict(block)
        if self.final[metric].notna().sum() == 0:
            return {}
        sizes = self.final["test_examples"].clip(lower=1)
        return dict(fairness_block(self.final[metric], sizes, higher_is_better=metric == "test_accuracy"))


def read(folder: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        DataError: The folder is not there, or holds nothing that a run writes.
    """
    problems: list[str] = []
    run = RunFolder(
        path=folder,
        scenario=_text(folder / "scenario.toml", problems),
        environment=_json(folder / "environment.json", problems),
        manifest=_json(folder / "manifest.json", problems),
        summary=_json(folder / "summary.json", problems),
        clients=_table(folder / "clients.parquet", problems),
        rounds=_table(folder / "rounds.parquet", problems),
        problems=tuple(problems),
    )
    if not (run.manifest or run.summary or len(run.clients)):
        found = "; ".join(problems) if folder.is_dir() else "no such folder"
        raise DataError(f"{folder}: not a run folder, got {found}; give a folder that a run has written")
    return run


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
    return ""


def _json(path: Path, problems: list[str]) -> Record:
    text = _text(path, problems)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    return content if isinstance(content, dict) else {}


def _table(path: Path, problems: list[str]) -> pd.DataFrame:
    if not path.is_file():
        problems.append(f"{path.name} is missing")
        return pd.DataFrame()
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these: a file cut short
        problems.append(f"{path.name} cannot be read: {str(error).splitlines()[0]}")
        return pd.DataFrame()
