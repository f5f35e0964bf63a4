"""Every test here ends: one that hangs fails, and says where each thread stood."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from fedsim.engine.local import LocalGrid
from tests.faults.studies import Left, Study

LIMIT_S = 120
"""Seconds for one test, on a machine that has much else to do."""

GRACE_S = 60
"""Seconds in which a test that was interrupted must end before the whole session is ended."""


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Interrupt a test that hangs, wherever it waits."""

    def bark(number: int, frame: FrameType | None) -> None:
        del number, frame
        faulthandler.dump_traceback(file=sys.__stderr__)
        pytest.fail(f"it hangs: not done within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(LIMIT_S)
    faulthandler.dump_traceback_later(LIMIT_S + GRACE_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def undisturbed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a module's study leaves when nothing goes wrong."""
    return study.run(LocalGrid(study.app()), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where faults count how often they have happened."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder
