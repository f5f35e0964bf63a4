"""Where the time went: phases add up, and every worker is there."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedsim import profile
from fedsim.engine.usage import Usage, Worked
from fedsim.profile import Stopwatch
from fedsim.rounds import Round
from fedsim.wire import pack_arrays


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def finished(number: int, **seconds: float) -> Round:
    return Round(number, pack_arrays({}), pack_arrays({}), seconds={**seconds, "total": sum(seconds.values())})


def test_phases_are_told_apart_and_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clock = Clock()
    monkeypatch.setattr(profile, "time", clock)
    watch = Stopwatch()
    clock.now += 4.0
    watch.ready()

    def slow(_: Round) -> None:
        clock.now += 0.5

    for number, train in ((0, 0.0), (1, 2.0), (2, 3.0)):
        clock.now += train + 0.25 + 1.0
        done = finished(number, train=train, aggregate=0.25, evaluate=1.0)
        watch(done)
        watch.around(slow)(done)
    usage = Usage(0.1, 5.0, 0.2, [Worked("worker 0", "here", 7, 5.125, 0.3, 30, 1)])
    found = watch.found(usage)
    expected = {"start": 4.0, "train": 5.0, "aggregate": 0.75, "evaluate": 3.0, "report": 1.5, "total": 14.25}
    assert {name: found["seconds"][name] for name in expected} == expected
    assert sum(expected.values()) == 2 * expected["total"]
    assert found["seconds"]["first"] == 5.25
    assert found["rounds"] == 2
    assert found["workers"][0]["busy_share"] == 0.5  # of the 10.25 s of rounds
    assert list(profile.lines(found)) == ["worker 0 (process 7 on here): 30 answers, busy 5.12 s, 50 %, 1 restarts"]
    (tmp_path / profile.PROFILE).write_text(json.dumps(found))
    console = Console(width=120, record=True, file=io.StringIO())
    for table in profile.tables(tmp_path):
        console.print(table)
    text = console.export_text()
    assert [line.split("│")[1:5] for line in text.splitlines() if "train" in line] == [
        [" train                          ", "  5.00 ", "     2500.0 ", "  35 "]
    ]
    assert "30" in text
