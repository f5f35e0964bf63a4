"""What a killed process leaves behind is removed, and nothing else ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.engine import scratch
from fedsim.engine.scratch import OwnedFile, OwnedFolder, clean

LEAVES = """
import os, signal, sys, tempfile
from pathlib import Path
from fedsim.engine.scratch import OwnedFile, OwnedFolder
tempfile.tempdir = sys.argv[1]
file, folder = OwnedFile(Path(sys.argv[1])), OwnedFolder()
(folder.path / "more").write_text("x")
print(file.path, folder.path, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "YOUNG_S", -1.0)


def left(folder: Path, how: str) -> tuple[subprocess.Popen[str], list[Path]]:
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(folder), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, [Path(path) for path in process.stdout.readline().split()]


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    process, paths = left(tmp_path, "killed")
    ended(process)
    assert all(path.exists() for path in paths)
    clean([tmp_path])
    assert not any(path.exists() for path in paths)


def test_what_a_living_process_has_is_left_alone_and_goes_with_it(tmp_path: Path) -> None:
    process, paths = left(tmp_path, "lives")
    clean([tmp_path])
    assert all(path.exists() for path in paths)
    ended(process)
    assert not any(path.exists() for path in paths)


def test_what_looks_alike_is_somebody_elses(tmp_path: Path) -> None:
    mine = OwnedFile(tmp_path)
    folders = ["fedsim-100-clients", "fedsim-folder-abcdefgh", "fedsim-folder-a", f"fedsim-{os.getpid()}-x"]
    files = ["fedsim-100-notes.txt", "fedsim-file-notes", "fedsim-file-of-results.txt"]
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results").write_text("x")
    for name in files:
        (tmp_path / name).write_text("x")
    clean([tmp_path, tmp_path / "missing"])
    assert {path.name for path in tmp_path.iterdir()} == {*folders, *files, Path(mine.path).name}
    mine.close()
    assert not Path(mine.path).exists()


def test_what_was_made_a_moment_ago_may_not_be_locked_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "YOUNG_S", 60.0)
    path = tmp_path / f"{scratch.FILE}abcdefgh"
    path.write_text("x")
    clean([tmp_path])
    assert path.exists()
    os.utime(path, (time.time() - 120, time.time() - 120))
    clean([tmp_path])
    assert not path.exists()


def test_a_folder_of_its_own_is_closed_twice_without_harm() -> None:
    folder = OwnedFolder()
    folder.close()
    folder.close()
    assert not folder.path.exists()
