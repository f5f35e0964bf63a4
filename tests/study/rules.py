"""Rules with a fault, for studies that must survive it; workers import them from here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, ClassVar, final

from strategies.rules import Cohort, Direction, Facts, MemoryRule, Rule


@final
class Unsound(Rule):
    """A rule with a mistake in it."""

    facts: ClassVar[Facts] = Facts(memory="none", cost="K D", secure=True)

    def direction(self, cohort: Cohort) -> Direction:
        del cohort
        raise ZeroDivisionError("nobody thought of this")


@final
class Deadly(MemoryRule):
    """The weighted mean, over more for each round so far; its process is killed in round 2, the first times.

    Attributes:
        marks: A folder that holds a file for each death.
        deaths: How often.
    """

    facts: ClassVar[Facts] = Facts(memory="a number", cost="K D", secure=True)

    marks: str
    deaths: int = 1

    def initial_memory(self) -> dict[str, Any]:
        return {"rounds": 0}

    def direction(self, cohort: Cohort, memory: dict[str, Any]) -> tuple[Direction, dict[str, Any]]:
        rounds = memory["rounds"] + 1
        before = len(list(Path(self.marks).iterdir()))
        if rounds == 2 and before < self.deaths:
            (Path(self.marks) / f"{before}-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        weights = cohort.weights / rounds
        return Direction(cohort.combine(weights), weights), {"rounds": rounds}
