"""Processes and files of other processes, as tests wait for them."""

import time
from pathlib import Path


def gone(pid: int, seconds: float = 15.0) -> bool:
    """Whether a process ends soon; one that nobody has buried yet has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False
