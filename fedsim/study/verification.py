"""`verify`: a scenario is run again, and what comes out is held against what its table [expect] says."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError
from rich.console import Console

from fedsim import plugins
from fedsim.environment import versions
from fedsim.errors import ScenarioError
from fedsim.lock import RunLock
from fedsim.scenario import layered
from fedsim.sentences import sentences
from fedsim.study import command, conductor, tuning
from fedsim.study.design import Design, beside, slug, study_table
from fedsim.study.folder import RUNS, TRIALS, is_finished
from fedsim.study.settings import Expectation, Expectations
from fedsim.study.words import spoken

CODE = ("commit", "torch", "numpy", "scipy", "flwr")
"""What of a run's surroundings has to be as it is now for it to say something of the present."""


@dataclass(frozen=True)
class Line:
    """One expectation and what came out.

    Attributes:
        value: Mean over the pairs; NaN where there is none.
        deviation: Standard deviation over the pairs; NaN with one.
        n: Number of pairs.
    """

    scenario: str
    method: str
    measure: str
    expected: Expectation
    value: float
    deviation: float
    n: int

    @property
    def within(self) -> bool:
        """Whether the value is in the range."""
        return self.expected.holds(self.value)


def verify(
    path: str | Path,
    changes: Sequence[str] = (),
    seeds: str | None = None,
    out: Path | None = None,
    parallel: conductor.Parallel | None = None,
) -> bool:
    """Run the methods that a scenario has expectations of, and say what is within them.

    Args:
        path: A file, or the name of a bundled scenario.
        changes: "key=value" changes that change no result, such as engine.workers.
        seeds: Seeds other than the study's, as text.
        out: The study folder; None makes a new one. Runs in it that are finished count only if they were made by
            the code as it is now.
        parallel: See `conductor.compare`.

    Returns:
        Whether every value is within its range.

    Raises:
        ScenarioError: It has no expectations, or a change would make them void.
        RoundError: A run failed.
    """
    study = study_table(layered(path), path)
    named = list(study.get("scenarios") or [])
    expected = {str(each): _expectations(each) for each in [beside(path, name) for name in named] or [path]}
    labels = list(dict.fromkeys(label for each in expected.values() for label in each))
    if not labels:
        raise ScenarioError(
            str(path),
            ["expect: there is none; write [expect.fedavg.mean] with value, within and source, or run `compare`"],
        )
    asked = command.options(seeds=seeds)
    design = _design(path, changes, asked, labels)
    if design.digest() != _design(path, (), asked, labels).digest():
        _refuse(path, "--set", changes)
    # A table beside study.changes knows of them, those of the scenarios that a study names do not.
    if named and design.digest() != _design(path, changes, {**asked, "changes": []}, labels).digest():
        _refuse(path, "study.changes", study["changes"])
    folder = out or _new_folder(design)
    conductor.refuse_foreign(folder, design)
    if folder.is_dir():
        with RunLock(folder, folder / "lock"):
            _forget_outdated(folder)
    line = command.line(str(path), asked, changes, out, verb="verify")
    found = conductor.compare(design, folder, line, parallel)
    conductor.raise_for(found, folder)
    by_name = dict(zip((base.name for base in design.bases), expected.values(), strict=True))
    lines = held_against(found["results"], by_name)
    console = Console()
    for words in _said(lines):
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    return all(each.within for each in lines)


def _new_folder(design: Design) -> Path:
    """Return a new folder under runs/: what is to be verified is the present, not what was once found."""
    stamp = Path("runs") / f"verify-{slug(design.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, count = stamp, 1
    while folder.exists():
        count += 1
        folder = stamp.with_name(f"{stamp.name}-{count}")
    return folder


def _forget_outdated(folder: Path) -> None:
    """Remove finished runs that other code made, or other packages."""
    now = versions()
    for parent in (folder / RUNS, folder / TRIALS):
        for run in sorted(parent.iterdir()) if parent.is_dir() else ():
            if not is_finished(run):
                continue
            about = json.loads((run / "environment.json").read_text(encoding="utf-8"))
            if any(session.get(name) != now.get(name) for session in about["sessions"] for name in CODE):
                shutil.rmtree(run)


def held_against(
    results: Sequence[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Mapping[str, Expectation]]]
) -> list[Line]:
    """Return a line for each expectation.

    Args:
        results: Of study.json.
        expected: Scenario -> method -> measure -> range.
    """
    means = {(entry["scenario"], entry["method"], entry["metric"]): entry for entry in results}
    lines = []
    for scenario, methods in expected.items():
        for method, measures in methods.items():
            for measure, range_ in measures.items():
                entry = means.get((scenario, method, measure), {"mean": None, "std": None, "n": 0})
                value, deviation = (math.nan if entry[key] is None else entry[key] for key in ("mean", "std"))
                lines.append(Line(scenario, method, measure, range_, value, deviation, entry["n"]))
    return lines


def _refuse(path: str | Path, where: str, changes: Sequence[str]) -> NoReturn:
    said = f"{', '.join(changes)} makes other runs than [expect] is about; `compare` takes any change"
    raise ScenarioError(str(path), [f"{where}: {said}"])


def _expectations(path: str | Path) -> Mapping[str, Mapping[str, Expectation]]:
    try:
        return Expectations.model_validate(layered(path).get("expect", {})).root
    except ValidationError as error:
        raise ScenarioError(str(path), list(sentences("expect.", error, Expectations, "an expectation"))) from error


def _design(path: str | Path, changes: Sequence[str], asked: Mapping[str, Any], labels: Sequence[str]) -> Design:
    given = study_table(layered(path), path).get("methods")
    methods = asked if given else {**asked, "methods": list(labels)}
    design = Design.load(path, changes, methods, fewest=1)
    known = [method.label for method in design.methods]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise ScenarioError(
            str(path),
            [
                f"expect.{label}: the study has no such method{plugins.nearest(label, known)} "
                f"there are {', '.join(known)}"
                for label in unknown
            ],
        )
    plan = tuning.plan(design)
    if plan is None:
        return design.only(labels)
    # The budget may follow from methods of which nothing is expected.
    tune = plan.settings.model_copy(update={"budget": plan.budget})
    settings = design.settings.model_copy(update={"tune": tune})
    return replace(design, settings=settings).only(labels)


def _said(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a line for each expectation, the sources they refer to, and the sum of it."""
    sources = list(dict.fromkeys(line.expected.source for line in lines))
    names = [f"{line.scenario}, {line.method}, {spoken(line.measure)}" for line in lines]
    width = max(map(len, names))
    for name, line in zip(names, lines, strict=True):
        low, high = line.expected.range
        verdict = "within " if line.within else "OUTSIDE"
        spread = "" if math.isnan(line.deviation) else f" (deviation {line.deviation:.4f} over {line.n})"
        place = sources.index(line.expected.source) + 1
        yield f"{verdict}  {name:<{width}}  {line.value:.4f}{spread}, expected {low:.4f} to {high:.4f} [{place}]"
    for place, source in enumerate(sources, 1):
        yield f"[{place}] {source}"
    yield f"{sum(line.within for line in lines)} of {len(lines)} values are within what was expected"
