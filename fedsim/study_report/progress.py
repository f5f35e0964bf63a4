"""Accuracy over rounds, and against simulated time and traffic where a scenario has a clock."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.frames import KEYS
from fedsim.report.style import figure, marker, rounds_axis
from fedsim.report.system import NEEDED, SIZES, TIMES, scaled
from fedsim.study_report.labels import legend, short_names, ticks
from fedsim.study_report.scene import OTHERS, Scene

COLUMNS = {"mean_accuracy": "mean of the clients", "worst_10": "mean of the worst 10 %"}

_LINES = ("-", "--", "-.", ":")


class Curve(NamedTuple):
    """One method's way through the rounds: mean over pairs, lowest and highest pair, fractions, [evaluations]."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def has_rounds(scene: Scene) -> bool:
    """Say whether any run of the scenario left evaluated rounds."""
    rows = scene.rounds
    return {"round", *COLUMNS} <= set(rows.columns) and bool(rows["mean_accuracy"].notna().any())


def has_clock(scene: Scene) -> bool:
    """Say whether the scenario's runs have simulated seconds and bytes."""
    return has_rounds(scene) and set(NEEDED) <= set(scene.rounds.columns)


def curve(scene: Scene, method: str, column: str, x: str = "round") -> Curve:
    """Return a column over rounds for one method.

    Args:
        scene: The scenario.
        method: The label.
        column: Of rounds.parquet.
        x: "round", or a column whose mean over pairs is the place of a round: "simulated_time" or "traffic".

    Returns:
        The rounds that all of the method's runs have a value of: a mean over fewer pairs would jump.
    """
    rows = scene.rounds[scene.rounds["method"] == method]
    if x == "traffic":
        travelled = rows["bytes_down"] + rows["bytes_up"]
        rows = rows.assign(traffic=travelled.groupby([rows[key] for key in KEYS], dropna=False).cumsum())
    rows = rows.dropna(subset=[column, x])
    by_round = rows.groupby("round")
    table = pd.DataFrame(
        {
            "x": by_round[x].mean(),
            "mean": by_round[column].mean(),
            "low": by_round[column].min(),
            "high": by_round[column].max(),
            "runs": by_round.size(),
        }
    )
    table = table[table["runs"] == table["runs"].max()].sort_index()
    return Curve(*(table[name].to_numpy(float) for name in ("x", "mean", "low", "high")))


def accuracy_over_rounds(scene: Scene) -> Figure:
    """Mean (left) and worst tenth (right) of the clients' accuracies over rounds."""
    drawing = figure(4.3)
    panels = drawing.subplots(1, 2, sharey=True)
    for axes, (column, name) in zip(panels, COLUMNS.items(), strict=True):
        found = _lines(axes, scene, column, "round", 1.0)
        rounds_axis(axes, np.concatenate([line.x for line in found]), nbins=6)
        axes.set_title(name)
    panels[0].set_ylabel("test accuracy (%)")
    legend(drawing, *panels[0].get_legend_handles_labels())
    return drawing


def accuracy_against_cost(scene: Scene) -> Figure:
    """The same against simulated time (above) and against traffic (below)."""
    drawing = figure(6.4)
    panels = drawing.subplots(2, 2, sharey=True)
    rows = scene.rounds
    times = rows["simulated_time"].to_numpy(float)
    by_run = (rows["bytes_down"] + rows["bytes_up"]).groupby([rows[key] for key in KEYS], dropna=False).sum()
    for line, (x, values, units, name) in enumerate(
        (
            ("simulated_time", times, TIMES, "simulated time"),
            ("traffic", by_run.to_numpy(float), SIZES, "traffic, down and up"),
        )
    ):
        in_units, word = scaled(values[np.isfinite(values)], units)
        factor = float(in_units.max() / values[np.isfinite(values)].max()) if in_units.max(initial=0.0) else 1.0
        for axes, (column, title) in zip(panels[line], COLUMNS.items(), strict=True):
            _lines(axes, scene, column, x, factor)
            axes.set_xlabel(f"{name} ({word})")
            ticks(axes.xaxis)
            if line == 0:
                axes.set_title(title)
        panels[line][0].set_ylabel("test accuracy (%)")
    legend(drawing, *panels[0][0].get_legend_handles_labels())
    return drawing


def _lines(axes: Axes, scene: Scene, column: str, x: str, factor: float) -> list[Curve]:
    methods = [m for m in scene.methods if m in set(scene.rounds["method"])]
    own = [m for m in methods if m in scene.prominent]
    names = dict(zip(methods, short_names(methods, 26), strict=True))
    found = []
    for method in methods:
        line = curve(scene, method, column, x)
        found.append(line)
        if method not in own:
            axes.plot(line.x * factor, 100 * line.mean, color=OTHERS, linewidth=0.8, zorder=1)
    for place, method in enumerate(own):
        line, colour = found[methods.index(method)], scene.colour(method)
        axes.fill_between(line.x * factor, 100 * line.low, 100 * line.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(
            line.x * factor, 100 * line.mean, color=colour, linestyle=_LINES[place % len(_LINES)],
            linewidth=1.6, marker=marker(line.x), markersize=3, label=names[method], zorder=3,
        )  # fmt: skip
    if len(own) < len(methods):
        axes.plot([], [], color=OTHERS, linewidth=0.8, label=f"{len(methods) - len(own)} other methods")
    return found
