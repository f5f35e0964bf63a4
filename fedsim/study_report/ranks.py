"""Average ranks over scenarios and Demsar's critical-difference figure, and how much they can tell."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.frames import Record, Study, ranked_scenarios
from fedsim.report.style import GREY, INK, VERMILLION, figure
from fedsim.study_report.labels import short_names
from fedsim.study_report.scene import units_of
from fedsim.study_report.units import chance, title

LEAST_METHODS, LEAST_SCENARIOS = 4, 2

FEW_SCENARIOS = 10
"""Scenarios below which the tests of ranks are approximations (Demsar, JMLR 2006)."""


def drawn(study: Study) -> list[Record]:
    """Return the entries of study.json's ranks with enough methods and scenarios for the figure."""
    return [
        entry
        for entry in study.info.get("ranks") or []
        if len(entry["methods"]) >= LEAST_METHODS and len(ranked_scenarios(entry)) >= LEAST_SCENARIOS
        and entry.get("critical_difference") is not None
    ]  # fmt: skip


def critical_difference(entry: Record) -> Figure:
    """The methods along their average ranks; a bar joins those that are not told apart (Demsar, JMLR 2006)."""
    methods, average = entry["methods"], np.array(entry["average"], dtype=np.float64)
    order = np.argsort(average, kind="stable")
    count = len(methods)
    left = -(-count // 2)
    cliques = [clique for clique in entry.get("cliques") or [] if len(clique) > 1]
    step = 0.21
    drawing = figure(1.0 + 0.12 * len(cliques) + step * left)
    axes = drawing.add_subplot()
    axes.set_axis_off()
    # One unit of the y axis is one line of names; room for names at either side.
    room = 0.42 * (count - 1)
    axes.set_xlim(1 - room, count + room)
    top = -2.6
    bars = 0.55 * len(cliques) + 0.4
    axes.set_ylim(bars + left + 0.4, top)
    _scale(axes, count, float(entry["critical_difference"]))
    _bars(axes, cliques, dict(zip(methods, average, strict=True)))
    named = short_names([methods[k] for k in order], 30)
    for place, (index, name) in enumerate(zip(order, named, strict=True)):
        at_left = place < left
        line = bars + 0.5 + (place if at_left else count - 1 - place)
        edge = 1 - 0.06 * (count - 1) if at_left else count + 0.06 * (count - 1)
        rank = average[index]
        axes.plot([rank, rank, edge], [0, line, line], color=INK, linewidth=0.8)
        text = f"{name}  {rank:.2f}" if at_left else f"{rank:.2f}  {name}"
        gap = -0.01 * (count - 1) if at_left else 0.01 * (count - 1)
        axes.text(edge + gap, line, text, ha="right" if at_left else "left", va="center", fontsize=9)
    return drawing


def _scale(axes: Axes, count: int, critical: float) -> None:
    axes.hlines(0, 1, count, color=INK, linewidth=1.2)
    every = max(1, round(count / 12))
    for tick in [*range(1, count, every), count]:
        if tick != count and count - tick < every / 2:
            continue
        axes.vlines(tick, -0.25, 0, color=INK, linewidth=1.0)
        axes.text(tick, -0.4, str(tick), ha="center", va="bottom", fontsize=9)
    shown = min(critical, count - 1.0)
    axes.hlines(-1.75, 1, 1 + shown, color=VERMILLION, linewidth=1.6)
    axes.vlines([1, 1 + shown] if critical <= count - 1 else [1], -1.95, -1.55, color=VERMILLION, linewidth=1.6)
    beyond = "" if critical <= count - 1 else ", more than there are ranks"
    axes.text(
        1 + shown / 2, -1.9, f"critical difference {critical:.2f}{beyond}", ha="center", va="bottom", fontsize=9,
        color=VERMILLION,
    )  # fmt: skip


def _bars(axes: Axes, cliques: list[list[str]], average: dict[str, float]) -> None:
    for row, clique in enumerate(cliques):
        ends = [average[m] for m in clique if m in average]
        axes.hlines(0.4 + 0.55 * row, min(ends) - 0.03, max(ends) + 0.03, color=GREY, linewidth=3.5)


def words(entry: Record) -> list[str]:
    """Return what the ranks can tell, in sentences."""
    names, count = ranked_scenarios(entry), len(entry["methods"])
    critical, friedman = entry.get("critical_difference"), entry.get("friedman") or {}
    found = []
    if friedman.get("p") is not None:
        found.append(
            f"{title(entry['metric'])}: Friedman's test over {len(names)} scenarios and {count} methods gives "
            f"p = {chance(friedman['p'])}.".replace("p = <", "p <")
        )
    if critical is None:
        return found
    if critical > count - 1:
        found.append(
            f"With {len(names)} scenarios two methods would have to differ by {critical:.2f} average ranks, and "
            f"the first and the last can differ by {count - 1} at most: these ranks cannot tell any two methods "
            "apart."
        )
    else:
        found.append(
            f"{title(entry['metric'])}: {_apart(entry) or 'none'} of {count * (count - 1) // 2} pairs of methods "
            f"are told apart, which takes a small p of Friedman's test and {critical:.2f} average ranks between "
            "them."
        )
    return found


def cautions(study: Study) -> list[str]:
    """Return how much ranks over these scenarios are worth, and who is not in them, in sentences."""
    entries: list[Any] = study.info.get("ranks") or []
    if not entries:
        return []
    names, methods = ranked_scenarios(entries[0]), set(entries[0]["methods"])
    found = []
    if len(names) < FEW_SCENARIOS:
        found.append(
            f"Each of the {len(names)} scenarios counts once, whatever its number of pairs. Nemenyi's and "
            f"Friedman's tests rely on a large-sample approximation that is poor below some {FEW_SCENARIOS} "
            "scenarios; read the ranks as a description, and the tests above, scenario by scenario, as evidence."
        )
    design = study.info["design"]
    data = [s.get("dataset") for s in design["scenarios"] if s["name"] in names]
    if None not in data and len(set(data)) < len(names):
        found.append(
            f"These {len(names)} scenarios have {len(set(data))} data set{'s' if len(set(data)) > 1 else ''} "
            f"({', '.join(dict.fromkeys(map(str, data)))}): both tests take scenarios for independent, which those "
            "of one data set are not, so the ranks speak of these scenarios and of no other data."
        )
    left = [str(m["label"]) for m in design["methods"] if m["label"] not in methods]
    if left:
        found.append(f"Without {', '.join(left)}: {units_of(study)} that others have are missing.")
    out = [str(s["name"]) for s in design["scenarios"] if s["name"] not in names]
    if out:
        found.append(f"Without {', '.join(out)}: a method lacks {units_of(study)} there that others have.")
    return found


def _apart(entry: Record) -> int:
    """Return how many pairs of methods are in no clique together."""
    joined = {frozenset(two) for clique in entry.get("cliques") or [] for two in combinations(clique, 2)}
    count = len(entry["methods"])
    return count * (count - 1) // 2 - len(joined)
