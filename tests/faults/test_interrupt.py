"""Ctrl-C at any moment of a round: what is left is a shorter run, to the last bit."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from fedsim.engine.local import LocalGrid
from fedsim.rounds import Round
from fedsim.server_app import conduct
from tests.faults.studies import Left, Study, same


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """SIGVTALRM, which counts seconds of this process however busy the machine is, means Ctrl-C."""
    sent: list[int] = []

    def ctrl_c(number: int, frame: FrameType | None) -> None:
        del frame
        sent.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, ctrl_c)
    yield sent
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    signal.signal(signal.SIGVTALRM, before)


# Python loses an exception that a signal raises in a weak reference's callback; whoever sees that presses again.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupted_run_is_a_shorter_run(seed: int, interrupts: list[int], tmp_path: Path) -> None:
    study = Study.of(rounds=100_000, model={"name": "logistic"})
    seconds = random.Random(seed).uniform(0.05, 0.6)

    def begin(finished: Round) -> None:
        if finished.number == 1:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        elif interrupts:
            raise KeyboardInterrupt

    folder = tmp_path / "interrupted"
    with LocalGrid(study.app()) as grid, pytest.raises(KeyboardInterrupt):
        conduct(study.scenario, study.federation, grid, folder, callbacks=[begin])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    reached = summary["rounds"]
    assert reached > 0
    shorter = Study.of(rounds=reached, model={"name": "logistic"})
    with LocalGrid(shorter.app()) as grid:
        conduct(shorter.scenario, shorter.federation, grid, tmp_path / "shorter")
    same(Left.of(folder), Left.of(tmp_path / "shorter"))
