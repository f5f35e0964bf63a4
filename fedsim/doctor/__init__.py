"""`run_sim.py doctor`: what of this machine would stop a run, or slow it down, and what to do about it.

Only the standard library is imported here, so that the doctor still speaks where PyTorch, Ray or Flower cannot be
imported. What may crash is imported by `fedsim.doctor.probes`, each in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "warn", "fail"]

FAILED = 2
"""Exit code when something fails."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: What was looked at.
        level: "ok"; "warn", where runs go on but not all that a user may expect works; "fail", where they cannot.
        found: What was found.
        do: What to do about it; "" where nothing needs to be done.
    """

    name: str
    level: Level
    found: str
    do: str = ""

    @property
    def text(self) -> str:
        """The finding for people: one line, and a second that says what to do."""
        line = f"{self.level:4s}  {self.name:18s}  {self.found}"
        return f"{line}\n{'':26s}-> {self.do}" if self.do else line


def examine(root: Path, *, deep: bool = False) -> Iterator[Finding]:
    """Look at everything, the quick things first.

    Args:
        root: The data root.
        deep: Also start a local Ray with one worker, and end it.
    """
    from fedsim.doctor import machine, packages

    yield from packages.python()
    yield from packages.requirements()
    yield from packages.torch_pair()
    yield from packages.gpu()
    yield from packages.ray(deep=deep)
    yield from packages.flower()
    yield from machine.environment()
    yield from machine.flower_home()
    yield from machine.cores()
    yield from machine.memory()
    yield from machine.shared_memory()
    yield from machine.open_files()
    yield from machine.disks(root)
    yield from packages.datasets(root)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0, or 2 if something fails."""
    return FAILED if any(finding.level == "fail" for finding in findings) else 0


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON: {"findings": [{"name", "level", "found", "do"}, ...], "exit_code": 0}."""
    content = {"findings": [asdict(finding) for finding in findings], "exit_code": exit_code(findings)}
    return json.dumps(content, indent=2)


def summary(findings: Sequence[Finding]) -> str:
    """Return how many of each level there are, in a line."""
    levels = [finding.level for finding in findings]
    return f"{levels.count('ok')} ok, {levels.count('warn')} to look at, {levels.count('fail')} failed"
