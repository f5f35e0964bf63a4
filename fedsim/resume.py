"""Checkpoints, and how a run is taken up again after it was killed, interrupted or stopped by a failure.

checkpoint/ in a run folder, until the run is finished:

state.safetensors   all that the rounds to come depend on, replaced in one step after a round (fedsim/checkpoint.py)
rounds.journal      the rows of every round, appended to (fedsim/journal.py); the state says how much of it counts
clients/            what clients keep, in files that never change (fedsim/engine/states.py); the state names them
lock                who writes the folder (fedsim/lock.py)

docs/resume.md says what is promised.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim import checkpoint
from fedsim.averages import Average
from fedsim.datasets import Split, data_root
from fedsim.engine.states import States
from fedsim.errors import DataError, ScenarioError
from fedsim.federation import Federation
from fedsim.journal import Journal
from fedsim.lock import RunLock
from fedsim.parameters import tensor_of
from fedsim.rounds import Kept, Round
from fedsim.run_folder import CHECKPOINT, JOURNAL, STATE, RunFolder, rewrite_tables
from fedsim.scenario import Scenario
from fedsim.settings import EngineSettings
from fedsim.wire import pack_arrays, unpack_arrays

LAYOUT = 1
"""Version of what is in a state, as `Checkpoints` writes it."""

SYNC_S = 5.0
"""Least seconds between two waits for the disk: against a loss of power, which the death of a process is not."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint, read.

    Attributes:
        path: Its file.
        last: The last finished round: its number, the model after it and the one served.
        kept: What the rounds to come depend on beside the model.
        position: Where the run folder stood, for `RunFolder`.
        scenario: The scenario's table.
        hashes: What the data were, see `hashes_of`.
    """

    path: Path
    last: Round
    kept: Kept
    position: Mapping[str, Any]
    scenario: Mapping[str, Any]
    hashes: Mapping[str, str]

    @staticmethod
    def read(folder: Path) -> Saved | None:
        """Return the last checkpoint of a run folder; None before the first.

        Raises:
            DataError: It is damaged, or of another version.
        """
        path = state_file(folder)
        if not path.exists():
            return None
        again = f"; it cannot be resumed, begin again with: python run_sim.py run {folder / 'scenario.toml'}"
        try:
            data = checkpoint.load(path)
        except DataError as error:
            raise DataError(f"{error}{again}") from error
        if data.get("layout") != LAYOUT:
            raise DataError(
                f"{path}: its layout must be {LAYOUT}, got {data.get('layout')}; go on with the version of fedsim "
                "that wrote it, environment.json names it"
            )
        try:
            Journal.opened(folder / CHECKPOINT / JOURNAL, data["folder"]["journal"], cut=False)
        except DataError as error:
            raise DataError(f"{error}{again}") from error
        arrays = pack_arrays(_arrays(data["model"]))
        served = pack_arrays(_arrays(data["served"])) if data["served"] else arrays
        clients = None if data["clients"] is None else _index(data["clients"])
        return Saved(
            path=path,
            last=Round(data["round"], arrays, served),
            kept=Kept(data["strategy"], data["average"], data["system"], clients),
            position=data["folder"],
            scenario=json.loads(data["scenario"]),
            hashes=data["hashes"],
        )

    def refuse_another_scenario(self, scenario: Scenario) -> None:
        """Refuse to go on with a scenario that would have given other rounds so far.

        Raises:
            ScenarioError: Lists what has changed.
        """
        refuse_changes(self.scenario, scenario, str(self.path.parent.parent))

    def refuse_other_data(self, scenario: Scenario, federation: Federation) -> None:
        """Refuse to go on with other data.

        Raises:
            DataError: Lists what has changed.
        """
        found = hashes_of(scenario, federation)
        lines = [
            f"{name}: {self.hashes.get(name, 'nothing')} -> {found.get(name, 'nothing')}"
            for name in sorted({*self.hashes, *found})
            if self.hashes.get(name) != found.get(name)
        ]
        if lines:
            where = (
                f"{self.path.parent.parent}: the data have changed (SHA-256); bring back what the run began with"
            )
            raise DataError("\n  ".join([where, *lines]))

    def give_back(self, strategy: Any, average: Average | None, states: States | None) -> None:
        """Put a strategy, an average and the clients' states where the last finished round left them.

        Raises:
            DataError: Client states are missing or damaged, or lie where no checkpoint reaches them.
        """
        if states is None or self.kept.clients is None:
            raise DataError(
                f"{self.path}: cannot be gone on with: what clients keep was not written beside it, as on Flower's "
                "own grid"
            )
        states.restore(self.kept.clients)
        strategy.memory = dict(self.kept.strategy)
        if self.kept.system is not None:
            strategy.system.memory = dict(self.kept.system)
        if average is not None:
            average.restore(self.kept.average)


class Checkpoints:
    """Writes a checkpoint after every round that is handed over with what it takes; the last callback of a round.

    Args:
        run: Told of the round before.
        scenario: The resolved scenario.
        hashes: What the data are, see `hashes_of`.
        states: What clients keep, where the engine has files for it; others than the run folder's are in no
            checkpoint.
    """

    def __init__(
        self, run: RunFolder, scenario: Scenario, hashes: Mapping[str, str], states: States | None
    ) -> None:
        beside = states is not None and states.folder.resolve() == states_folder(run.path)
        self._run, self._states = run, states if beside else None
        self._path = state_file(run.path)
        self._scenario, self._hashes = json.dumps(scenario.table()), dict(hashes)
        self._next_sync = 0.0

    def __call__(self, finished: Round) -> None:
        """Write a checkpoint, if one is due."""
        kept = finished.kept
        if kept is None:
            return
        sync = time.monotonic() >= self._next_sync
        if sync:
            self._run.synchronise()
        data = {
            "layout": LAYOUT,
            "round": finished.number,
            "model": _tensors(unpack_arrays(finished.arrays)),
            "served": {} if finished.served is finished.arrays else _tensors(unpack_arrays(finished.served)),
            "strategy": dict(kept.strategy),
            "average": dict(kept.average),
            "system": None if kept.system is None else dict(kept.system),
            "clients": None if kept.clients is None or self._states is None else _columns(kept.clients),
            "folder": self._run.position(),
            "scenario": self._scenario,
            "hashes": self._hashes,
        }
        checkpoint.save(self._path, data, sync=sync)
        if sync:
            self._next_sync = time.monotonic() + SYNC_S
        if self._states is not None and kept.clients is not None:
            self._states.keep(kept.clients)  # only now: the checkpoint before named other files


def state_file(folder: Path) -> Path:
    """Return the file of a run folder's checkpoint."""
    return folder / CHECKPOINT / STATE


def states_folder(folder: Path) -> Path:
    """Return where a run folder holds what clients keep; absolute, for workers elsewhere."""
    return (folder / CHECKPOINT / "clients").resolve()


def refuse_changes(before: Mapping[str, Any], scenario: Scenario, where: str) -> None:
    """Refuse a scenario that differs from the one a run began with in more than a resumed run may change.

    Raises:
        ScenarioError: Lists what has changed, old -> new.
    """
    old, new = _flat(before), _flat(scenario.table())
    free = {f"engine.{name}" for name in EngineSettings.movable}
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    problems = [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}; the rounds so far would have been others"
        for key in changed
        if key not in free and not key.startswith("tracking.")
    ]
    most = "engine.max_failures"
    if most in changed and new[most] < old.get(most, 0):
        problems.append(f"{most}: {old[most]} -> {new[most]}; it may only be raised, rounds may have had more")
    if problems:
        problems[-1] += (
            f"\na resumed run may change {', '.join(sorted(free))}, tracking; begin a new one for anything else"
        )
        raise ScenarioError(where, problems)


def hashes_of(scenario: Scenario, federation: Federation) -> dict[str, str]:
    """Return SHA-256 of what results depend on and a scenario only names: partition, examples, teachers, traces."""
    found = {"partition": str(federation.manifest["sha256"]), "examples": _digest(federation)}
    for name, hook in scenario.client.named_hooks.items():
        if hook.teacher not in (None, "received"):
            found[f"{name}: {hook.teacher}"] = _file_digest(Path(str(hook.teacher)))
    for name, part in dict(scenario.system or ()).items():
        trace = getattr(part, "path", None)
        if isinstance(trace, str):
            found[f"system.{name}: {trace}"] = _file_digest(data_root() / trace)
    return found


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def _digest(federation: Federation) -> str:
    digest = hashlib.sha256()
    for split in (federation.train, federation.test, federation.common_test):
        for tensor in _parts(split):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def _parts(split: Split | None) -> list[torch.Tensor]:
    return [] if split is None else [part for part in (split.x, split.y, split.groups) if part is not None]


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.loads(json.dumps(value))
    return flat


def _shown(table: Mapping[str, Any], key: str) -> str:
    return json.dumps(table[key]) if key in table else "not set"


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    return {name: tensor_of(array) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.generic]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _columns(index: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """Return client -> slip as two arrays: there may be hundreds of thousands."""
    text = "\n".join(index.values()).encode()
    return {
        "clients": torch.tensor(list(index), dtype=torch.int64),
        "slips": torch.from_numpy(np.frombuffer(text, np.uint8).copy()),
    }


def _index(columns: Mapping[str, torch.Tensor]) -> dict[int, str]:
    slips = columns["slips"].numpy().tobytes().decode().split("\n")
    clients: list[int] = columns["clients"].tolist()
    return dict(zip(clients, slips, strict=True)) if clients else {}


def bring_up(folder: Path) -> int | None:
    """Write the tables of a run that was killed as they were at its last checkpoint.

    A run that ends in any other way has written them itself.

    Returns:
        The round of that checkpoint; None where there is none, or the run is still going on.

    Raises:
        DataError: The checkpoint is damaged.
    """
    if not state_file(folder).exists():
        return None
    try:
        lock = RunLock(folder)
    except DataError:
        return None
    with lock:
        saved = Saved.read(folder)
        if saved is None:
            return None
        rewrite_tables(folder, saved.position)
        return saved.last.number
