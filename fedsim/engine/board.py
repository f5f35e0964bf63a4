"""Boards in shared memory: a request that every worker of this machine reads, and the rows they write in answer.

Ray's object store costs milliseconds for each object that crosses it, however small the work; a mapped file costs a
copy. Where shared memory is full, a file on disk does the same; a worker on another machine has the object store.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedsim.engine.scratch import OwnedFile, clean
from fedsim.errors import EngineError

FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))
"""Where boards are made: in the first that has room."""

SHARE = 0.5
"""Of what is free there that boards may take; the rest is Ray's and others'."""

PAGE = 4096

MAPS = 4
"""Boards that a worker keeps mapped: the grid has about two in turn."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Note:
    """Where a worker finds a request and leaves its rows; all that travels through Ray.

    Attributes:
        path: The board's file.
        request: Bytes of the pickled request, from the start.
        begin: Where the rows begin.
        shape: [K, D] of the rows.
        serial: No other request of this process has it.
    """

    path: str
    request: int
    begin: int
    shape: tuple[int, int]
    serial: int = 0


class Board:
    """A mapped file, grown by being replaced.

    Args:
        size: Bytes.
        folder: Where.

    Raises:
        OSError: There is no room, or no such folder.
    """

    def __init__(self, size: int, folder: Path) -> None:
        free = os.statvfs(folder)
        if size > SHARE * free.f_bavail * free.f_frsize:
            raise OSError(f"{folder} has no room for {size} bytes")
        self._owned = OwnedFile(folder)
        self.path, handle = self._owned.path, self._owned.handle
        try:
            os.posix_fallocate(handle, 0, size)  # a full folder must be an error here, not a signal later
            self._map = mmap.mmap(handle, size)
        except BaseException:
            self._owned.close()
            raise
        self.size = size

    def post(self, request: bytes, shape: tuple[int, int]) -> Note:
        """Write a request down and say where the rows go."""
        self._map[: len(request)] = request
        return Note(self.path, len(request), _begin(len(request)), shape, next(_serials))

    def rows(self, note: Note) -> Floats:
        """Return the rows, [K, D]; a view."""
        count = note.shape[0] * note.shape[1]
        return np.frombuffer(self._map, np.float32, count, note.begin).reshape(note.shape)

    def close(self) -> None:
        """Remove the file; what is mapped stays readable for those who have it."""
        self._owned.close()


@dataclass
class Boards:
    """Boards of a grid, each free again when nobody holds a row that lies on it."""

    _all: list[tuple[Board, weakref.ref[Any] | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remove what processes that were killed left behind."""
        clean(FOLDERS)

    def take(self, request: int, shape: tuple[int, int]) -> Board:
        """Return a free board with room for a request and rows.

        Raises:
            EngineError: There is no room for one anywhere.
        """
        size = _begin(request) + 4 * shape[0] * shape[1]
        free = [board for board, holder in self._all if holder is None or holder() is None]
        for board in free:
            if board.size >= size:
                self._all = [pair for pair in self._all if pair[0] is not board]
                return board
        for board in free:
            board.close()
        self._all = [pair for pair in self._all if all(pair[0] is not board for board in free)]
        full = []
        for folder in FOLDERS:
            try:
                return Board(max(size, PAGE), folder)
            except OSError as error:
                full.append(str(error))
        what = f" and {shape[0]} updates of {shape[1]} numbers" if shape[1] else ""
        advice = ", or let fewer clients take part in a round" if shape[1] else ""
        raise EngineError(
            f"engine: there is no room for a request of {request} bytes{what}: {'; '.join(full)}; "
            f"make room there{advice}"
        )

    def give_back(self, board: Board, rows: Floats | None) -> None:
        """Keep a board for another round, once nobody holds these rows or a view of them any more."""
        # Every view keeps the array that was made of the mapping, whatever becomes of the others.
        self._all.append((board, None if rows is None else weakref.ref(rows.base)))

    def close(self) -> None:
        """Remove every file."""
        for board, _ in self._all:
            board.close()
        self._all = []


class Reader:
    """A worker's side: maps a board when it first hears of it, and lets those go that were not used lately."""

    def __init__(self) -> None:
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._last: tuple[int, RecordDict] | None = None

    def request(self, note: Note) -> RecordDict:
        """Read the request; once, however often it is asked for in a row."""
        if self._last is None or self._last[0] != note.serial:
            self._last = note.serial, pickle.loads(self._open(note)[: note.request])
        return self._last[1]

    def rows(self, note: Note) -> Floats:
        """Return the rows to write answers into, [K, D]; a view."""
        count = note.shape[0] * note.shape[1]
        return np.frombuffer(self._open(note), np.float32, count, note.begin).reshape(note.shape)

    def _open(self, note: Note) -> mmap.mmap:
        if note.path not in self._maps:
            with Path(note.path).open("r+b") as file:
                self._maps[note.path] = mmap.mmap(file.fileno(), 0)
        self._maps.move_to_end(note.path)
        while len(self._maps) > MAPS:
            self._maps.popitem(last=False)
        return self._maps[note.path]


_serials = count(1)


def _begin(request: int) -> int:
    """Return where rows begin after a request: at a page, so that they are aligned."""
    return -(-request // PAGE) * PAGE


class Probe:
    """Files that hold a token, to find out who can read them: boards' folders and others.

    Args:
        folders: More folders that must be shared.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.token = uuid.uuid4().hex
        self._files: list[OwnedFile] = []
        for folder in (*FOLDERS, *folders):
            with contextlib.suppress(OSError):
                file = OwnedFile(folder)
                self._files.append(file)
                os.write(file.handle, self.token.encode())
        self.paths = [file.path for file in self._files]

    def close(self) -> None:
        """Remove the files."""
        for file in self._files:
            file.close()


def readable(paths: Sequence[str], token: str) -> bool:
    """Say whether files can be read here and hold a token: a worker shares this machine's memory and disk if so."""
    try:
        return bool(paths) and all(Path(path).read_text() == token for path in paths)
    except (OSError, UnicodeDecodeError):
        return False
