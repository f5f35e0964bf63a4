"""Accuracy against fairness: every method a point with its intervals in both directions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedsim.fairness import better
from fedsim.report.style import BLUE, GREY, INK, figure
from fedsim.statistics import pareto
from fedsim.study_report.labels import place, short_names, ticks
from fedsim.study_report.scene import Scene
from fedsim.study_report.units import heading, unit

MOST_NAMES = 12
"""Methods up to which names stand at the points; more have numbers, and a list below."""

_COLUMNS = 4


def panels(scene: Scene) -> list[tuple[str, str]]:
    """Return (x, y) of the panels that the scenario has results for."""
    spreads = [metric for metric in scene.tested if metric in ("std", "angle_deg")] or ["std"]
    wanted = [("mean", "worst_10"), ("mean", spreads[0])]
    return [
        pair
        for pair in wanted
        if any(all(scene.result(m, metric).get("mean") is not None for metric in pair) for m in scene.methods)
    ]


def accuracy_against_fairness(scene: Scene) -> Figure:
    """Mean accuracy against the worst tenth (left) and the spread (right); up and right is better in both."""
    drawn = panels(scene)
    numbered = len(scene.measured) > MOST_NAMES
    lines = -(-len(scene.measured) // _COLUMNS) if numbered else 0
    panel, key = 6.0 if numbered else 4.4, 0.17 * lines
    drawing = figure(panel + key)
    grid = drawing.add_gridspec(2 if numbered else 1, len(drawn), height_ratios=[panel, key] if numbered else [1])
    for column, (x, y) in enumerate(drawn):
        axes = drawing.add_subplot(grid[0, column])
        _panel(scene, axes, x, y)
    if numbered:
        _key(drawing.add_subplot(grid[1, :]), scene)
    shapes = drawing.axes[0].get_legend_handles_labels()
    drawing.legend(*shapes, loc="outside upper center", ncols=len(shapes[0]))
    for column, (x, y) in enumerate(drawn):
        _names(scene, drawing.axes[column], x, y, numbered=numbered)
    return drawing


def on_front(scene: Scene, x: str, y: str) -> list[str]:
    """Return the methods that no other beats in both measures: as study.json says, or else by the mean values."""
    for known_x, known_y, methods in scene.front:
        if (known_x, known_y) == (x, y):
            return methods
    methods = [m for m in _there(scene, x, y) if m not in scene.incomplete]
    signs = np.array([1.0 if better(m, higher_is_better=True) == "higher" else -1.0 for m in (x, y)])
    return [m for m, is_on in zip(methods, pareto(signs * _points(scene, methods, x, y)), strict=True) if is_on]


def _there(scene: Scene, x: str, y: str) -> list[str]:
    return [m for m in scene.methods if all(scene.result(m, k).get("mean") is not None for k in (x, y))]


def _points(scene: Scene, methods: list[str], x: str, y: str) -> NDArray[np.float64]:
    """Return [M, 2] in the units shown."""
    return np.array([[unit(k).factor * scene.result(m, k)["mean"] for k in (x, y)] for m in methods]).reshape(-1, 2)


def _intervals(scene: Scene, methods: list[str], x: str, y: str) -> NDArray[np.float64]:
    """Return the ends of the methods' intervals in both directions, in the units shown, [intervals, 2, 2]."""
    found = []
    for method, point in zip(methods, _points(scene, methods, x, y), strict=True):
        for axis, metric in enumerate((x, y)):
            interval = scene.interval(method, metric)
            if interval is not None:
                ends = np.tile(point, (2, 1))
                # An interval of few pairs may reach beyond what an accuracy can be.
                ends[:, axis] = np.clip(interval, 0.0, 1.0) * unit(metric).factor
                found.append(ends)
    return np.array(found).reshape(-1, 2, 2)


def _panel(scene: Scene, axes: Axes, x: str, y: str) -> None:
    methods = _there(scene, x, y)
    points = _points(scene, methods, x, y)
    front = on_front(scene, x, y)
    faint = 0.45 if len(methods) <= MOST_NAMES else 0.22
    for method in methods:
        for ends in _intervals(scene, [method], x, y):
            axes.plot(*ends.T, color=BLUE if method in front else GREY, alpha=faint, linewidth=1.1)
    best = np.array([method in front for method in methods])
    if best.any():
        corner = points[best][np.lexsort((points[best][:, 1], points[best][:, 0]))]
        axes.plot(*corner.T, color=BLUE, linestyle="--", linewidth=1.0, zorder=2)
        axes.scatter(
            points[best, 0], points[best, 1], s=44, color=BLUE, zorder=4, label="on the Pareto front of the means"
        )
    if not best.all():
        axes.scatter(
            points[~best, 0],
            points[~best, 1],
            s=36,
            facecolor="white",
            edgecolor=GREY,
            linewidth=1.4,
            zorder=3,
            label="others",
        )
    if scene.baseline in methods:
        own = points[methods.index(scene.baseline)]
        axes.scatter(
            own[0], own[1], s=150, facecolor="none", edgecolor=INK, marker="s",
            linewidth=1.2, zorder=5, label="baseline",
        )  # fmt: skip
    axes.set_xlabel(heading(x))
    falls = better(y, higher_is_better=True) == "lower"
    axes.set_ylabel(f"{heading(y)}{', axis reversed' if falls else ''}")
    axes.margins(0.12)
    if falls:
        axes.invert_yaxis()
    for axis in (axes.xaxis, axes.yaxis):
        ticks(axis)


def _names(scene: Scene, axes: Axes, x: str, y: str, *, numbered: bool) -> None:
    methods = _there(scene, x, y)
    named = short_names(methods, 24)
    numbers = [str(scene.measured.index(m) + 1) if m in scene.measured else m for m in methods]
    front = on_front(scene, x, y)
    place(
        axes,
        _points(scene, methods, x, y),
        numbers if numbered else named,
        size=8.0 if numbered else 9.0,
        colours=[BLUE if method in front else INK for method in methods],
        mark=f"name-{y}",
        lines=_intervals(scene, methods, x, y),
    )


def _key(axes: Axes, scene: Scene) -> None:
    """List the methods' numbers and names in columns."""
    axes.set_axis_off()
    rows = -(-len(scene.measured) // _COLUMNS)
    axes.set(xlim=(0, _COLUMNS), ylim=(rows, 0))
    for place_, name in enumerate(short_names(scene.measured, 28)):
        column, row = divmod(place_, rows)
        axes.text(column, row + 0.5, f"{place_ + 1}  {name}", fontsize=8.5, va="center").set_in_layout(False)
