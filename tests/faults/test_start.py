"""Ray or the workers cannot start, or have no room: one message within seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.errors import EngineError
from tests.engine.fakes import FakeApp
from tests.faults.apps import Unreadable
from tests.test_cli import HOME, SMALL, spawn

pytestmark = pytest.mark.slow


def test_an_application_that_workers_cannot_read(ray_cluster: None) -> None:
    from fedsim.engine.grid import RayGrid
    from fedsim.settings import EngineSettings

    with pytest.raises(EngineError, match="the Ray workers cannot start") as caught:
        RayGrid(Unreadable(), EngineSettings(workers=1))  # type: ignore[arg-type]
    assert "no module named 'left_at_home'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_that_break_while_they_start(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.engine.grid import RayGrid
    from fedsim.settings import EngineSettings

    settings = EngineSettings(workers=1).model_copy(update={"threads_per_worker": -1})
    with pytest.raises(EngineError, match=r"the Ray workers cannot start: .*positive"):
        RayGrid(FakeApp(), settings)


def test_an_address_where_nobody_is(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    changes = ("--set", "engine.backend=ray", "--set", "engine.address=127.0.0.1:9")
    began = time.monotonic()
    process = spawn("run", "small.toml", *changes, "--out", "out", folder=tmp_path)
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - began < 60  # Ray by itself tries for minutes
    assert process.returncode == 2, err
    (line,) = err.strip().splitlines()
    assert line.startswith("error: engine.address: no Ray cluster can be reached at '127.0.0.1:9': ")
    assert line.endswith("or leave engine.address out")
    assert not (tmp_path / "out").exists()


def test_an_object_store_that_is_too_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.scripts", "crowded"],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(("answered", "refused"))]
    assert line == "answered" or line.startswith("refused: engine: ")
