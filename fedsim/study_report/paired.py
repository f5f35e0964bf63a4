"""The differences to the baseline, pair by pair or seed by seed: what the tests see."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.report.style import BLUE, GREY, INK, VERMILLION, figure
from fedsim.study_report.labels import legend, ticks
from fedsim.study_report.scene import Scene
from fedsim.study_report.spread import method_rows, tall
from fedsim.study_report.units import title, unit

_ACROSS = 3

VERDICTS = {
    "better": (BLUE, "significantly better"),
    "worse": (VERMILLION, "significantly worse"),
    "open": (GREY, "not told apart"),
}


def rivals(scene: Scene) -> list[str]:
    """Return the methods with a difference to the baseline in any tested measure."""
    return [
        m
        for m in scene.methods
        if any((scene.result(m, k).get("difference") or {}).get("mean") is not None for k in scene.tested)
    ]


def verdict(scene: Scene, method: str, metric: str) -> str:
    """Return "better", "worse" or, where the test does not tell, "open"."""
    difference = scene.result(method, metric).get("difference") or {}
    if not difference.get("significant"):
        return "open"
    return "better" if difference.get("improves") else "worse"


def differences(scene: Scene) -> Figure:
    """A dot for each pair (seed, where partitions are crossed), a mean and its interval for each method."""
    methods, metrics = rivals(scene), scene.tested
    across = min(_ACROSS, len(metrics))
    down = -(-len(metrics) // across)
    drawing = figure(down * (1.0 + tall(methods) * max(len(methods), 2)) + 0.4)
    panels = drawing.subplots(down, across, sharey=True, squeeze=False)
    for axes, metric in zip(panels.ravel(), metrics, strict=False):
        _panel(scene, axes, metric, methods)
    for axes in panels.ravel()[len(metrics) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        method_rows(axes, scene, methods)
    handles = {
        name: handle
        for axes in panels.ravel()
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend(drawing, list(handles.values()), list(handles))
    return drawing


def _panel(scene: Scene, axes: Axes, metric: str, methods: list[str]) -> None:
    factor = unit(metric).factor
    axes.axvline(0, color=INK, linewidth=1.0)
    for row, method in enumerate(methods):
        difference = scene.result(method, metric).get("difference") or {}
        if difference.get("mean") is None:
            continue
        colour, said = VERDICTS[verdict(scene, method, metric)]
        gaps = factor * scene.gaps(method, metric)
        # Equal differences stand one above the other, so that none is hidden.
        heights = row + 0.16 + 0.05 * (np.arange(len(gaps)) % 3)
        axes.scatter(
            gaps, heights, s=17, facecolor="none", edgecolor=INK, linewidth=0.8, alpha=0.7,
            label="a seed, mean over its partitions" if scene.crossed else "a pair",
        )  # fmt: skip
        interval = scene.interval(method, metric, of="difference")
        if interval is not None:
            low, high = factor * np.array(interval)
            axes.hlines(row - 0.14, low, high, color=colour, linewidth=2.4)
        axes.plot(
            factor * difference["mean"], row - 0.14, marker="D", markersize=6, color=colour, linestyle="",
            label=f"mean and interval, {said}",
        )  # fmt: skip
    axes.set_title(f"{title(metric)} ({unit(metric).gap})" if unit(metric).gap else title(metric))
    better = next((scene.result(m, metric).get("better") for m in methods if scene.result(m, metric)), None)
    arrow = {"higher": "(better \u2192)", "lower": "(\u2190 better)"}.get(str(better), "")
    axes.set_xlabel(f"difference to the baseline {arrow}" if len(scene.tested) < 3 else f"difference {arrow}")
    ticks(axes.xaxis, 5)
    axes.grid(visible=False, axis="y")
