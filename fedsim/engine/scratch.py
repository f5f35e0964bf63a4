"""Files and folders that go with the process that made them; what a killed one leaves behind, the next one removes.

Whose they are says a lock that the system lets go when a process ends, however it ends: numbers of processes are
used again, and mean nothing to another container that shares the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable
from pathlib import Path

FILE, FOLDER = "fedsim-file-", "fedsim-folder-"
LOCK = "owner.lock"
"""In each folder: what is locked for it, and without which no folder is ever removed."""

NAMES = re.compile(rf"(?:{FILE}|{FOLDER})[a-z0-9_]{{8}}")

YOUNG_S = 60.0
"""Seconds in which whatever was made last may not be locked yet."""


class OwnedFile:
    """A new file, locked as long as this lives.

    Args:
        folder: Where.

    Raises:
        OSError: It cannot be made there.
    """

    def __init__(self, folder: Path) -> None:
        self.handle, self.path = tempfile.mkstemp(prefix=FILE, dir=folder)
        fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.close = weakref.finalize(self, _close_file, self.handle, self.path)


class OwnedFolder:
    """A new folder among the temporary ones, locked as long as this lives.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER))
        handle = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.close = weakref.finalize(self, _close_folder, handle, self.path)


def clean(folders: Iterable[Path]) -> None:
    """Remove what processes that are no more have left in these folders."""
    for folder in dict.fromkeys(folders):
        for path in [*folder.glob(f"{FILE}*"), *folder.glob(f"{FOLDER}*")]:
            if not NAMES.fullmatch(path.name):
                continue
            with contextlib.suppress(OSError):
                if path.name.startswith(FILE) and path.is_file() and _is_left(path):
                    path.unlink()
                elif path.name.startswith(FOLDER) and _is_left(path / LOCK):
                    shutil.rmtree(path, ignore_errors=True)


def _is_left(path: Path) -> bool:
    """Say whether a file was locked by a process that is no more.

    Raises:
        OSError: There is no such file, or it is somebody else's.
    """
    if time.time() - path.stat().st_mtime < YOUNG_S:
        return False
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _close_file(handle: int, path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink()
    os.close(handle)


def _close_folder(handle: int, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(handle)
