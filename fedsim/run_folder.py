"""The run folder: what a run leaves behind, readable at any time after the first round.

scenario.toml       the resolved scenario           environment.json   versions, commit, hardware, seed
manifest.json       who owns what, with a hash      partition.svg      a figure of it
clients.parquet     round x client: every number    rounds.parquet     one row per round
summary.json        the fairness block              model.safetensors  the final model
log.txt             what happened                   report.html        all of it, to look at
profile.json        where the time went
checkpoint/         until the run is finished: what `resume` goes on from (fedsim/resume.py)
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fedsim import files
from fedsim.environment import changes, with_session
from fedsim.errors import DataError
from fedsim.fairness import CONVENTIONS, fairness_block, improved_share
from fedsim.federation import Federation
from fedsim.journal import Journal, column_of
from fedsim.metrics import SUMS, Task, given, measured
from fedsim.rounds import Round
from fedsim.scenario import Scenario
from fedsim.system.plan import Plan, totals
from fedsim.wire import Answer, unpack_arrays

CHECKPOINT, STATE, JOURNAL = "checkpoint", "state.safetensors", "rounds.journal"

EVERY_CLIENT = 10_000
"""Clients of a federation up to which every one has a row in every round, whether or not it says anything."""

FLUSH_S = 10.0
"""Least seconds between two writings of the tables during a run."""

MODELS = ("test", "server")
"""Begin the columns of an evaluation: of the model a client uses, and of the shared one where that is another."""

Cell = float | str | list[float]

log = logging.getLogger("fedsim")

TRAIN_COLUMNS = {"loss": "loss", "loss-after": "loss_after", "steps": "steps", "update-norm": "update_norm"}
"""Name on the wire -> column; further numbers a client reports keep their name."""


def default_folder(scenario: Scenario) -> Path:
    """Return a new folder under runs/, named by scenario, rule, seed and time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    rule = "".join(letter if letter.isalnum() else "-" for letter in scenario.method).strip("-")
    name = f"{scenario.name}-{rule}-seed{scenario.seed}-{stamp}"
    folder = Path("runs") / name
    count = 1
    while folder.exists():
        count += 1
        folder = Path("runs") / f"{name}-{count}"
    return folder


class RunFolder:
    """Collects what happens and writes it down; a callback of the round loop.

    Args:
        path: The folder, made if need be.
        scenario: The resolved scenario.
        federation: Who owns what.
        position: Where a run in this folder is taken up, as `position` returned it; {} for its start. None makes a
            new run.

    Attributes:
        began_with: Hashes of the examples and the initial weights, for the summary.

    Raises:
        DataError: The folder already holds a run, or what it holds is damaged.
    """

    def __init__(
        self, path: Path, scenario: Scenario, federation: Federation, position: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._scenario = scenario
        self._federation = federation
        self._evaluated: dict[str, NDArray[Any]] = {}  # the rows of the last round with an accuracy
        self._rounds: list[dict[str, Cell]] = []
        self._metrics = measured(scenario.evaluation.metrics)
        self._values = given(self._metrics.values())
        vectors = [name for name, value in self._values.items() if value.vector]
        # Other lists that a client may send are nobody's columns.
        self._lists = {f"{model}_{name}" for model in MODELS for name in vectors}
        self._arrays: ArrayRecord | None = None
        self._open: Round | None = None  # the round that is being taken down
        self.latest: tuple[dict[str, Cell], dict[str, NDArray[Any]]] | None = None  # row and clients' table
        self._previous_loss: NDArray[np.float64] | None = None
        self._seconds = {"start": 0.0, "train": 0.0, "aggregate": 0.0, "evaluate": 0.0}
        self._began = time.perf_counter()
        self._before = 0.0  # seconds of earlier sessions
        self._next_flush = 0.0
        self.summary: dict[str, Any] = {}
        self.began_with: dict[str, str] = {}
        if position is None:
            refuse_used(path)
        try:
            (path / CHECKPOINT).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be made: {error.strerror}; name another folder with --out") from error
        journal = path / CHECKPOINT / JOURNAL
        self._journal = self._taken_up(journal, position) if position else Journal(journal)
        # A run that is under way has no summary: the one of a session before would be about fewer rounds.
        (path / "summary.json").unlink(missing_ok=True)
        files.replace(path / "scenario.toml", scenario.to_toml())
        files.replace(path / "manifest.json", json.dumps(federation.manifest))
        environment = with_session(path / "environment.json", scenario, len(self._rounds))
        self._sessions = environment["sessions"]
        files.replace(path / "environment.json", json.dumps(environment, indent=2))

    def started(self, served: ArrayRecord | None = None) -> None:
        """Note that everything is ready for the first round.

        Args:
            served: The model of the last finished round, for a run that is taken up.
        """
        self._arrays = served
        self._seconds["start"] += time.perf_counter() - self._began

    def position(self) -> dict[str, Any]:
        """Return where the folder stands after the last round it was told of, as plain data for a checkpoint."""
        return {"journal": self._journal.length, "seconds": self._clock()}

    def __call__(self, finished: Round) -> None:
        """Take down one round."""
        self._open = finished
        table = self._client_rows(finished)
        row = self._round_row(finished, table)
        self._journal.append({"row": row, "evaluated": bool(finished.evaluated)}, table)
        # From here on the round counts, whatever interrupts us: see `close`.
        self._arrays = finished.served
        for phase in ("train", "aggregate", "evaluate"):
            self._seconds[phase] += finished.seconds[phase]
        self._rounds.append(row)
        if finished.evaluated:
            self._look_back(table)
        self._open, self.latest = None, (row, table)
        if time.perf_counter() >= self._next_flush:
            start = time.perf_counter()
            self._write_tables()
            # Tables are written whole, so they are written rarely when that takes long.
            self._next_flush = time.perf_counter() + max(FLUSH_S, 50.0 * (time.perf_counter() - start))

    def close(self, status: str, error: str | None = None) -> dict[str, Any]:
        """Write tables, summary and model; return the summary.

        Args:
            status: "finished", "interrupted" or "failed".
            error: Why it failed.
        """
        if self._open is not None:  # interrupted in the middle of a round: what the journal has is what counts
            self._read_back()
            if self._rounds and self._rounds[-1]["round"] == self._open.number:
                self._arrays = self._open.served
        self._write_tables()
        model = unpack_arrays(self._arrays) if self._arrays is not None else {}
        if model:
            partial = self.path / "model.safetensors.part"
            save_file({name: np.ascontiguousarray(array) for name, array in model.items()}, str(partial))
            partial.chmod(0o644)  # safetensors makes files only the owner can read
            partial.replace(self.path / "model.safetensors")
        summary = self._summary(status, model)
        if error is not None:
            summary["error"] = error
        files.replace(self.path / "summary.json", json.dumps(files.jsonable(summary), indent=2))
        self.summary = summary
        return summary

    def synchronise(self) -> None:
        """Wait until the rows are on the disk."""
        self._journal.synchronise()

    def changes(self) -> list[str]:
        """Return how the versions of this run's sessions differ, in sentences."""
        return changes(self._sessions)

    def clear(self) -> None:
        """Remove what only a run that is not finished needs; what cannot be removed is logged."""
        try:
            (self.path / CHECKPOINT / STATE).unlink(missing_ok=True)  # first: without it nothing is resumed
            shutil.rmtree(self.path / CHECKPOINT)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self.path / CHECKPOINT, error)

    def _write_tables(self) -> None:
        if not self._rounds:
            return
        self._journal.write_parquet(self.path / "clients.parquet")
        _write_table(self.path / "rounds.parquet", pd.DataFrame(self._rounds))

    def _taken_up(self, path: Path, position: Mapping[str, Any]) -> Journal:
        """Read what the tables held when a checkpoint was made; what came later is cut off."""
        journal = Journal.opened(path, position["journal"])
        total = position["seconds"]["total"]
        self._before, self._seconds = total, {name: position["seconds"][name] for name in self._seconds}
        self._journal = journal
        self._read_back()
        return journal

    def _read_back(self) -> None:
        """Take the tables from the journal."""
        self._rounds.clear()
        for note, table in self._journal.rounds():
            self._rounds.append(note["row"])
            if note["evaluated"]:
                wanted = {"client", "test_examples", "test_loss", "test_accuracy", *dict(self._measurable())}
                self._look_back({name: column_of(table, name) for name in table.column_names if name in wanted})

    def _look_back(self, table: dict[str, NDArray[Any]]) -> None:
        """Keep what the next evaluation and the summary look back at."""
        losses = np.full(self._federation.num_clients, np.nan)
        losses[table["client"]] = table["test_loss"]
        self._previous_loss = losses
        if not np.isnan(table["test_accuracy"]).all():
            self._evaluated = table

    def _reported(self, finished: Round) -> NDArray[np.int64]:
        """Return the clients that get a row: all; in a large federation those there is something to say about."""
        if self._federation.num_clients <= EVERY_CLIENT:
            return np.arange(self._federation.num_clients)
        answers = self._known((*finished.trained, *finished.evaluated, *finished.failures))
        asked = {part.client for part in finished.system.parts} if finished.system is not None else set()
        return np.array(sorted(asked | {answer.client for answer in answers}), dtype=np.int64)

    def _client_rows(self, finished: Round) -> dict[str, NDArray[Any]]:
        clients = self._reported(finished)
        place = {client: row for row, client in enumerate(clients.tolist())}
        count = len(clients)
        nothing, no_list = np.full(count, np.nan), np.full(count, None)
        table: dict[str, NDArray[Any]] = {
            "round": np.full(count, finished.number),
            "client": clients,
            "train_examples": np.asarray(self._federation.train_sizes)[clients],
            "test_examples": np.asarray(self._federation.test_sizes)[clients],
            "sampled": np.zeros(count, dtype=bool),
            "failed": np.zeros(count, dtype=bool),
            **{
                column: nothing.copy()
                for column in (*TRAIN_COLUMNS.values(), "weight", "test_loss", "test_accuracy")
            },
        }
        for name, measure in self._values.items():
            table.setdefault(f"test_{name}", no_list.copy() if measure.vector else nothing.copy())
        for failure in self._known(finished.failures):
            table["failed"][place[failure.client]] = True
        for answer in self._known(finished.trained):
            table["sampled"][place[answer.client]] = True
        for answer in self._known((*finished.trained, *finished.evaluated)):
            row = place[answer.client]
            for name, value in answer.numbers.items():
                if name not in ("client", "num-examples"):
                    named = TRAIN_COLUMNS.get(name, name.replace("-", "_"))
                    if named not in table:
                        table[named] = nothing.copy()
                    table[named][row] = value
            for name, vector in answer.vectors.items():
                if name in self._lists:
                    if name not in table:
                        table[name] = no_list.copy()
                    table[name][row] = vector.tolist()
        for client, weight in finished.weights.items():
            if client in place:  # not a node that never said which client it is
                table["weight"][place[client]] = weight
        if self._scenario.system is not None:
            table |= (finished.system or Plan()).columns(place)
        return table

    def _known(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return the answers of clients of the federation: a node that failed may not have said which it is."""
        return [answer for answer in answers if 0 <= answer.client < self._federation.num_clients]

    def _pooled(self, answers: Sequence[Answer]) -> dict[str, float | list[float]]:
        """Return metrics of all clients' test examples together, from the sums that the clients sent."""
        task = Task(self._federation.num_classes, len(self._federation.group_names))
        in_order = sorted(self._known(answers), key=lambda answer: answer.client)  # a sum has one order
        found: dict[str, float | list[float]] = {}
        for name, metric in self._metrics.items():
            sums = [answer.vectors[SUMS + name] for answer in in_order if SUMS + name in answer.vectors]
            if metric.pooled and sums:
                values = metric.values(reduce(np.add, sums)[None], task)
                found |= {given_name: value[0].tolist() for given_name, value in values.items()}
        return found

    def _round_row(self, finished: Round, table: dict[str, NDArray[Any]]) -> dict[str, Cell]:
        lr = getattr(self._scenario.server, "lr", None) or math.nan
        decay = self._scenario.server.lr_decay ** max(0, finished.number - 1)
        row: dict[str, Cell] = {
            "round": finished.number,
            **{f"seconds_{phase}": seconds for phase, seconds in finished.seconds.items() if phase != "total"},
            "seconds": finished.seconds["total"],
            "server_lr": lr * decay,
            "num_sampled": len(finished.trained),
            "num_failures": len(finished.failures),
            "mean_loss": _mean(table["loss"]),
            **{f"central_{name}": value for name, value in finished.central.items()},
            **finished.info,
        }
        if self._scenario.system is not None:
            row |= (finished.system or Plan()).row()
        if finished.evaluated:
            row |= {f"pooled_{name}": value for name, value in self._pooled(finished.evaluated).items()}
            accuracy = _measures(table["test_accuracy"], table["test_examples"], higher_is_better=True)
            row |= {
                "mean_accuracy": accuracy["mean"],
                "worst_10": accuracy["worst_10"],
                "std": accuracy["std"],
            }
            if self._previous_loss is not None:
                row["improved"] = improved_share(self._previous_loss[table["client"]], table["test_loss"])
        return row

    def _summary(self, status: str, model: dict[str, NDArray[Any]]) -> dict[str, Any]:
        fairness: dict[str, Any] = {}
        if self._evaluated:
            last = self._evaluated
            for column, higher in self._measurable():
                # The measures of spread are defined for what cannot be negative; a metric of one's own may be.
                if column in last and not (last[column] < 0).any():
                    fairness[column] = _measures(last[column], last["test_examples"], higher_is_better=higher)
            shares = [share for row in self._rounds if isinstance(share := row.get("improved"), float)]
            fairness["improved"] = float(np.mean(shares)) if shares else math.nan
        asked = {"pooled": self._last("pooled_"), "metrics": self._definitions()}
        return {
            "scenario": self._scenario.name,
            "strategy": self._scenario.method,
            "notes": [*self._scenario.notes(), *self.changes()],
            "seed": self._scenario.seed,
            "rounds": max(0, len(self._rounds) - 1),
            "status": status,
            "partition_sha256": self._federation.manifest["sha256"],
            **self.began_with,
            "model_sha256": model_digest(model) if model else None,
            "fairness": fairness,
            "central": self._last("central_") or None,
            **(asked if self._scenario.evaluation.metrics else {}),
            **({"system": totals(self._rounds)} if self._scenario.system is not None else {}),
            "seconds": self._clock(),
        }

    def _clock(self) -> dict[str, float]:
        return {**self._seconds, "total": self._before + time.perf_counter() - self._began}

    def _measurable(self) -> list[tuple[str, bool]]:
        """Return (column, whether higher is better) of every number per client with a better end."""
        ways = [
            (name, v.better == "higher")
            for name, v in self._values.items()
            if not v.vector and v.better != "neither"
        ]
        return [(f"{model}_{name}", higher) for model in MODELS for name, higher in ways]

    def _last(self, prefix: str) -> dict[str, Cell]:
        """Return the columns of the last evaluated round that begin so, without the prefix."""
        rows = [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in self._rounds]
        return next((row for row in reversed(rows) if row), {})

    def _definitions(self) -> dict[str, dict[str, str]]:
        """Return what the columns test_<name> and pooled_<name> mean, for readers without the code."""
        return {name: {"definition": v.definition, "better": v.better} for name, v in self._values.items()}


def rewrite_tables(folder: Path, position: Mapping[str, Any]) -> None:
    """Write the tables of a run that could not do so itself, from its journal.

    Args:
        folder: The run folder.
        position: Where it stood, see `RunFolder.position`.

    Raises:
        DataError: The journal is damaged.
    """
    journal = Journal.opened(folder / CHECKPOINT / JOURNAL, position["journal"], cut=False)
    journal.write_parquet(folder / "clients.parquet")
    _write_table(folder / "rounds.parquet", pd.DataFrame([note["row"] for note, _ in journal.rounds()]))


def refuse_used(path: Path) -> None:
    """Refuse to write a run over another one.

    Raises:
        DataError: The folder is not empty.
    """
    # The engine may have made its part of the checkpoint's folder already; no run has begun in it.
    if path.exists() and (not path.is_dir() or any(entry.name != CHECKPOINT for entry in path.iterdir())):
        raise DataError(f"{path}: is not an empty folder; name another one with --out, nothing is overwritten")


def model_digest(arrays: dict[str, NDArray[Any]]) -> str:
    """Return a hash of names, shapes and bits of a model."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _measures(values: NDArray[Any], sizes: NDArray[Any], *, higher_is_better: bool) -> dict[str, float]:
    """Return the fairness block; NaN where no client has a value, as after a divergence."""
    if np.isnan(values).all():
        return {**dict.fromkeys(CONVENTIONS, math.nan), "n": 0.0}
    return fairness_block(values, sizes, higher_is_better=higher_is_better)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _write_table(path: Path, table: pd.DataFrame) -> None:
    partial = path.with_name(path.name + ".part")
    table.to_parquet(partial, index=False)
    partial.replace(path)
