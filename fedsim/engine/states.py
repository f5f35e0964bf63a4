"""What clients keep between rounds, in files: whoever drives a run holds a line of text for each client.

A worker writes the states of the clients it answered for into one file, which is never changed. So a checkpoint is
a list of lines, a client can be trained by any worker next, and memory does not grow with the number of clients.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedsim.engine.scratch import OwnedFolder
from fedsim.errors import DataError

State = dict[str, NDArray[np.generic]]

SUFFIX = ".states"

NOTHING = ""
"""Slip of a client that keeps nothing yet."""


class States:
    """The slips of all clients, and the files they name.

    A slip is "<file>#<place>". Its file goes when no client's present slip and no checkpoint names it.

    Args:
        folder: Where the files are; None makes a folder that goes with this object.

    Raises:
        DataError: The folder cannot be made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._owned = OwnedFolder() if folder is None else None
        folder = self._owned.path if self._owned is not None else folder
        assert folder is not None
        self.folder = folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made: {error.strerror}") from error
        self._slips: dict[int, str] = {}
        self._uses: Counter[str] = Counter()  # file -> clients whose present state is there
        self._kept: set[str] = set()
        self._count = 0
        # A worker of a run that was killed may still be writing while the run is taken up.
        self._session = secrets.token_hex(4)

    def slip(self, client: int) -> str:
        """Return where a client's state is."""
        return self._slips.get(client, NOTHING)

    def index(self) -> dict[int, str]:
        """Return client -> slip of every client that keeps something; plain data for a checkpoint."""
        return dict(sorted(self._slips.items()))

    def new_file(self) -> str:
        """Return a name that no file here has."""
        while True:
            self._count += 1
            name = f"{self._session}-{self._count:08d}{SUFFIX}"
            if not (self.folder / name).exists():
                return name

    def update(self, slips: Mapping[int, str]) -> None:
        """Take down where clients' states are now."""
        before = {self._slips[client] for client in slips if client in self._slips}
        for client, slip in slips.items():
            if client in self._slips:
                self._uses[_file(self._slips.pop(client))] -= 1
            if slip:
                self._slips[client] = slip
                self._uses[_file(slip)] += 1
        self._forget(_file(slip) for slip in before)

    def keep(self, index: Mapping[int, str]) -> None:
        """Let the files that a checkpoint names survive, and those that only the one before it named go."""
        before, self._kept = self._kept, {_file(slip) for slip in index.values()}
        self._forget(before)

    def restore(self, index: Mapping[int, str]) -> None:
        """Go back to a checkpoint; files that it does not name are removed.

        Raises:
            DataError: A file that it names is missing or damaged.
        """
        places: dict[str, set[str]] = {}
        for slip in index.values():
            file, _, place = slip.partition("#")
            places.setdefault(file, set()).add(place)
        for file, wanted in sorted(places.items()):
            missing = wanted - _places(self.folder / file)
            if missing:
                raise DataError(f"{self.folder / file}: holds no state at place {', '.join(sorted(missing))}")
        self._slips = dict(index)
        self._uses = Counter(_file(slip) for slip in index.values())
        self._kept = set(places)
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.name not in places:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder if it was made here."""
        if self._owned is not None:
            self._owned.close()

    def _forget(self, files: Iterable[str]) -> None:
        for file in files:
            if self._uses[file] <= 0:
                del self._uses[file]
                if file not in self._kept:
                    (self.folder / file).unlink(missing_ok=True)


def write_states(folder: Path, file: str, states: Sequence[State]) -> list[str]:
    """Write states to a new file and return their slips."""
    arrays = {
        f"{place}/{name}": np.asarray(array, order="C")
        for place, state in enumerate(states)
        for name, array in state.items()
    }
    if arrays:
        save_file(arrays, str(folder / file))
    return [f"{file}#{place}" if state else NOTHING for place, state in enumerate(states)]


def read_states(folder: Path, slips: Sequence[str]) -> list[State]:
    """Read the states that slips name.

    Raises:
        DataError: A file is missing or damaged.
    """
    rows: dict[str, dict[str, list[int]]] = {}
    for row, slip in enumerate(slips):
        if slip:
            file, _, place = slip.partition("#")
            rows.setdefault(file, {}).setdefault(place, []).append(row)
    states: list[State] = [{} for _ in slips]
    for file, wanted in rows.items():
        try:
            with safe_open(str(folder / file), framework="np") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    place, _, name = key.partition("/")
                    for row in wanted.get(place, ()):
                        states[row][name] = opened.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / file}: the states of clients cannot be read: {error}") from error
    return states


def _file(slip: str) -> str:
    return slip.partition("#")[0]


def _places(path: Path) -> set[str]:
    try:
        with safe_open(str(path), framework="np") as opened:
            return {key.partition("/")[0] for key in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the states of clients cannot be read: {error}") from error
