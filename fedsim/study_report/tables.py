"""The tables of the page: what is shown, and the number behind it."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from fedsim.fairness import LEVELS
from fedsim.frames import Record, Study
from fedsim.report.tables import duration
from fedsim.study_report.paired import rivals, verdict
from fedsim.study_report.scene import Scene, known_interval
from fedsim.study_report.units import (
    DASH,
    LOSS,
    between,
    chance,
    definition,
    heading,
    number,
    plain,
    signed,
    spread,
)

_STRATEGY = "strategy."

MARKS = {"better": "\u25b2", "worse": "\u25bc", "open": ""}
"""Marks of what the test says of a method against the baseline."""


class Cell(NamedTuple):
    """A measure of a method: level, difference to the baseline, what the test says of it, and the exact mean."""

    level: str
    gap: str
    interval: str
    mark: str
    verdict: str
    value: str


class Row(NamedTuple):
    """A method in the table against the baseline; `pairs` with a value, and the n of its means and deviations."""

    method: str
    pairs: int
    n: int
    cells: list[Cell]
    wins: str
    wins_interval: str


class Setting(NamedTuple):
    """A line of the table of settings, as text: cells of its columns, options of the strategy, and all others."""

    method: str
    cells: list[str]
    options: str
    others: str


class Settings(NamedTuple):
    """What methods ran with on a scenario: `columns` are options that all of them have.

    Attributes:
        columns: Names of the options that have a column.
        rows: A line for each method, the baseline first.
        others: Whether any line has something in `others`.
    """

    columns: list[str]
    rows: list[Setting]
    others: bool


class Detail(NamedTuple):
    """A line of the details of the tests, as text."""

    method: str
    metric: str
    pairs: str
    difference: str
    interval: str
    t_interval: str
    effect_size: str
    rank_biserial: str
    t: str
    t_p: str
    t_p_holm: str
    wilcoxon: str
    wilcoxon_p: str
    wilcoxon_p_holm: str
    agree: str
    significant: bool


def against_baseline(scene: Scene) -> list[Row]:
    """Return a row for each method with a result, the baseline first."""
    rows = []
    for method in scene.measured:
        win = scene.win(method)
        shares = [win.get(part) for part in ("better", "equal", "worse")]
        known = all(share is not None for share in shares)
        rows.append(
            Row(
                method,
                scene.count(method),
                int(scene.result(method, scene.tested[0]).get("n") or 0),
                [_cell(scene, method, metric) for metric in scene.tested],
                " / ".join(f"{100 * float(share or 0):.0f}" for share in shares) if known else "",
                _shares(known_interval(win.get("interval"))),
            )
        )
    return rows


def has_wins(scene: Scene) -> bool:
    """Say whether there is anything to show in the column of wins."""
    return any(scene.win(method) for method in scene.measured)


def _cell(scene: Scene, method: str, metric: str) -> Cell:
    result = scene.result(method, metric)
    difference = result.get("difference") or {}
    said = verdict(scene, method, metric)
    return Cell(
        spread(metric, result.get("mean"), result.get("std")),
        signed(metric, difference["mean"]) if difference.get("mean") is not None else "",
        between(metric, known_interval(difference.get("interval"))),
        MARKS[said],
        said,
        _exact(result.get("mean")),
    )


def _shares(interval: list[float] | None) -> str:
    return f"{100 * interval[0]:.0f} to {100 * interval[1]:.0f}\u00a0%" if interval else ""


def _exact(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def level_columns(scene: Scene) -> list[tuple[str, str]]:
    """Return (measure, heading) of every measure of test accuracy and loss with a result."""
    known = [m for m in scene.metrics if any(scene.result(k, m).get("mean") is not None for k in scene.measured)]
    order = [*(m for m in known if not m.startswith(LOSS)), *(m for m in known if m.startswith(LOSS))]
    return [(metric, heading(metric)) for metric in order if metric != "n"]


def levels(scene: Scene) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each method its (text, exact mean) of every measure in `level_columns`."""
    rows = []
    for method in scene.measured:
        results = [(metric, scene.result(method, metric)) for metric, _ in level_columns(scene)]
        cells = [(spread(m, r.get("mean"), r.get("std")), _exact(r.get("mean"))) for m, r in results]
        rows.append((method, cells))
    return rows


def details(scene: Scene) -> list[Detail]:
    """Return what the tests worked with, a line for each tested measure and method."""
    found = []
    for metric in scene.tested:
        for method in rivals(scene):
            difference = scene.result(method, metric).get("difference") or {}
            if not difference:
                continue
            t, wilcoxon = difference.get("t") or {}, difference.get("wilcoxon") or {}
            agree = difference.get("partitions_agree")
            found.append(
                Detail(
                    method=method,
                    metric=heading(metric),
                    pairs=str(difference.get("n", DASH)),
                    difference=signed(metric, difference.get("mean")),
                    interval=between(metric, known_interval(difference.get("interval"))) or DASH,
                    t_interval=between(metric, known_interval(difference.get("t_interval"))) or DASH,
                    effect_size=plain(difference.get("effect_size")),
                    rank_biserial=plain(difference.get("rank_biserial")),
                    t=plain(t.get("statistic")),
                    t_p=chance(t.get("p")),
                    t_p_holm=chance(t.get("p_holm")),
                    wilcoxon=plain(wilcoxon.get("statistic"), 1),
                    wilcoxon_p=chance(wilcoxon.get("p")),
                    wilcoxon_p_holm=chance(wilcoxon.get("p_holm")),
                    agree=f"{agree[0]} of {agree[1]}" if agree else "",
                    significant=bool(difference.get("significant")),
                )
            )
    return found


def settings(scene: Scene) -> Settings | None:
    """Return what each method ran with; None for a study that does not say."""
    of = {
        str(method["label"]): (method.get("settings") or {}).get(scene.name)
        for method in scene.study.info["design"]["methods"]
    }
    known = {method: found for method in scene.methods if (found := of[method])}
    if not known:
        return None
    shared = [
        name
        for name in next(iter(known.values()))
        if not name.startswith(_STRATEGY) and all(name in found for found in known.values())
    ]
    rows = []
    for method, found in known.items():
        options = {n.removeprefix(_STRATEGY): v for n, v in found.items() if n.startswith(_STRATEGY)}
        options.pop("name", None)
        others = {n: v for n, v in found.items() if n not in shared and not n.startswith(_STRATEGY)}
        rows.append(Setting(method, [setting(found[name]) for name in shared], _values(options), _values(others)))
    return Settings(shared, rows, any(row.others for row in rows))


def setting(value: object) -> str:
    """Return a value of an option as a scenario says it; null for one that is not set.

    >>> setting("norm"), setting(True), setting(None), setting([0.1, 1])
    ('norm', 'true', 'null', '[0.1, 1]')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def not_finished(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Return (method, pair, status, cause) of every run that has no result."""
    return [
        (str(run["method"]), pair_name(run), str(run["status"]), str(run.get("error") or ""))
        for run in scene.runs
        if run["status"] != "finished"
    ]


def pair_name(record: Record) -> str:
    """Return what a pair is called: its seed, and its partition where that is not the seed's."""
    partition = record.get("partition")
    return (
        f"seed {record.get('seed')}" if partition is None else f"partition {partition}, seed {record.get('seed')}"
    )


def tuned(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Return (method, chosen values, score, options at the grid's edge)."""
    tuning = scene.study.info.get("tuning") or {}
    metric = str(tuning.get("metric") or "mean")
    return [
        (
            str(choice["method"]),
            _values(choice.get("values") or {}),
            number(metric, choice.get("score")),
            ", ".join(choice.get("at_edge") or []),
        )
        for choice in tuning.get("chosen") or []
        if choice["scenario"] == scene.name
    ]


def trials(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Return (method, values, score, error) of every trial."""
    tuning = scene.study.info.get("tuning") or {}
    metric = str(tuning.get("metric") or "mean")
    return [
        (
            str(t["method"]),
            _values(t.get("values") or {}),
            number(metric, t.get("score")),
            str(t.get("error") or ""),
        )
        for t in tuning.get("trials") or []
        if t["scenario"] == scene.name
    ]


def grids(study: Study) -> list[tuple[str, str]]:
    """Return each method's grid in words."""
    found = (study.info.get("tuning") or {}).get("grids") or {}
    return [
        (str(method), "; ".join(f"{option}: {', '.join(map(str, values))}" for option, values in grid.items()))
        for method, grid in found.items()
    ]


def _values(values: Record) -> str:
    return ", ".join(f"{option} = {setting(value)}" for option, value in values.items())


def definitions(study: Study) -> list[tuple[str, str]]:
    """Return (heading, definition) of every measure that the study has results of."""
    metrics = dict.fromkeys(result["metric"] for result in study.info.get("results") or [])
    return [(heading(m), _definition(m)) for m in metrics if definition(m)]


def _definition(metric: str) -> str:
    if not metric.startswith(LOSS):
        return definition(metric)
    turned = metric.removeprefix(LOSS) in LEVELS
    end = " (the worst are the highest)" if turned and "worst" in metric else ""
    return f"{definition(metric)}, of test losses{end}"


def time_spent(study: Study) -> str:
    """Return how long all finished runs took together."""
    seconds = sum(float(run.get("seconds") or 0.0) for run in study.info.get("runs") or [])
    return duration(seconds) if seconds else ""
