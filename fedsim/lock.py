"""One process writes a run folder: a lock that the operating system takes back when its holder dies.

A file names the process and the host for whoever is refused; the lock itself is the system's (flock), so a process
that was killed leaves none behind, and a number that another process has got since is no matter.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsim.errors import DataError


class RunLock:
    """Held while a run writes its folder; a context manager that lets go.

    Args:
        folder: The run folder, made if need be.
        path: The file to lock; None takes the one that runs have.

    Raises:
        DataError: Another process holds it, or the folder cannot be made.
    """

    def __init__(self, folder: Path, path: Path | None = None) -> None:
        path = path or lock_file(folder)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be made: {error.strerror}; name another folder with --out"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(os.read(self._descriptor, 4096))
            os.close(self._descriptor)
            raise DataError(f"{folder}: is being written by {holder}; wait for its end, or end it") from error
        except OSError as error:
            os.close(self._descriptor)
            raise DataError(f"{path}: cannot be locked: {error.strerror}; put the run on another disk") from error
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(about).encode(), 0)

    def release(self) -> None:
        """Let go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_file(folder: Path) -> Path:
    """Return the file of a run folder's lock."""
    return folder / "checkpoint" / "lock"


def _holder(content: bytes) -> str:
    try:
        about = json.loads(content)
        return f"process {about['pid']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError):  # it has the lock and has not written yet
        return "another process"
