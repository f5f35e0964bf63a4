"""Boards in shared memory: a request that every worker of this machine reads, and the rows they write in answer.

Ray's object store costs milliseconds for each object that crosses it, however small the work; a mapped file costs a
copy. Where there is no room, or a worker is on another machine, the object store does the same.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

FOLDER = Path("/dev/shm")
SHARE = 0.5
"""Of the free shared memory that boards may take; the rest is Ray's and others'."""

PAGE = 4096

PREFIX = "fedsim-"
"""A board's file is named by it and by the process that made it."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Note:
    """Where a worker finds a request and leaves its rows; all that travels through Ray.

    Attributes:
        path: The board's file.
        request: Bytes of the pickled request, from the start.
        begin: Where the rows begin.
        shape: [K, D] of the rows.
    """

    path: str
    request: int
    begin: int
    shape: tuple[int, int]


class Board:
    """A mapped file, grown by being replaced.

    Args:
        size: Bytes.

    Raises:
        OSError: There is no room, or no folder of shared memory.
    """

    def __init__(self, size: int) -> None:
        free = os.statvfs(FOLDER)
        if size > SHARE * free.f_bavail * free.f_frsize:
            raise OSError(f"{FOLDER} has no room for {size} bytes")
        handle, self.path = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=FOLDER)
        try:
            os.posix_fallocate(handle, 0, size)  # a full folder must be an error here, not a signal later
            self._map = mmap.mmap(handle, size)
        except BaseException:
            Path(self.path).unlink()
            raise
        finally:
            os.close(handle)
        self.size = size
        self._finalizer = weakref.finalize(self, _forget, self.path)

    def post(self, request: bytes, shape: tuple[int, int]) -> Note:
        """Write a request down and say where the rows go."""
        self._map[: len(request)] = request
        return Note(self.path, len(request), _begin(len(request)), shape)

    def rows(self, note: Note) -> Floats:
        """Return the rows, [K, D]; a view."""
        count = note.shape[0] * note.shape[1]
        return np.frombuffer(self._map, np.float32, count, note.begin).reshape(note.shape)

    def close(self) -> None:
        """Remove the file; what is mapped stays readable for those who have it."""
        self._finalizer()


@dataclass
class Boards:
    """Boards of a grid, each free again when nobody holds a row that lies on it."""

    _all: list[tuple[Board, weakref.ref[Any] | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remove what processes that were killed left behind."""
        for file in FOLDER.glob(f"{PREFIX}*-*"):
            maker = file.name.removeprefix(PREFIX).partition("-")[0]
            if maker.isdigit() and not _runs(int(maker)):
                _forget(str(file))

    def take(self, request: int, shape: tuple[int, int]) -> Board | None:
        """Return a free board with room for a request and rows, or None where there can be none."""
        size = _begin(request) + 4 * shape[0] * shape[1]
        free = [board for board, holder in self._all if holder is None or holder() is None]
        for board in free:
            if board.size >= size:
                self._all = [pair for pair in self._all if pair[0] is not board]
                return board
        for board in free:
            board.close()
        self._all = [pair for pair in self._all if all(pair[0] is not board for board in free)]
        try:
            return Board(max(size, PAGE))
        except OSError:
            return None

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
    """A worker's side: maps a board when it first hears of it, and lets the last one go."""

    def __init__(self) -> None:
        self._path = ""
        self._map: mmap.mmap | None = None

    def request(self, note: Note) -> RecordDict:
        """Read the request."""
        request: RecordDict = pickle.loads(self._open(note)[: note.request])
        return request

    def write(self, note: Note, places: Sequence[int], rows: Floats) -> None:
        """Write rows, [len(places), D], at their places."""
        count = note.shape[0] * note.shape[1]
        everything = np.frombuffer(self._open(note), np.float32, count, note.begin).reshape(note.shape)
        everything[list(places)] = rows

    def _open(self, note: Note) -> mmap.mmap:
        if self._map is None or self._path != note.path:
            with Path(note.path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
            self._path = note.path
        return self._map


def _begin(request: int) -> int:
    """Return where rows begin after a request: at a page, so that they are aligned."""
    return -(-max(request, 1) // PAGE) * PAGE


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


@contextmanager
def probe() -> Iterator[tuple[str, str]]:
    """Yield a file in shared memory and what it holds, to find out who can read it; "" where there is none."""
    token = uuid.uuid4().hex
    try:
        handle, path = tempfile.mkstemp(prefix=f"{PREFIX}{os.getpid()}-", dir=FOLDER)
    except OSError:
        yield "", token
        return
    try:
        with os.fdopen(handle, "w") as file:
            file.write(token)
        yield path, token
    finally:
        _forget(path)


def readable(path: str, token: str) -> bool:
    """Say whether a file can be read here and holds a token: a worker shares this machine's memory if so."""
    try:
        return Path(path).read_text() == token
    except (OSError, UnicodeDecodeError):
        return False


def _forget(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()
