"""What a scenario's metrics measured beside accuracy and loss: their figures and their table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report.folder import RunFolder
from fedsim.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    figure,
    marker,
    plain_numbers,
    rounds_axis,
    short,
)
from fedsim.report.tables import Cell, as_float, number

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY, INK)
LINES = ("-", "--", ":", "-.")

NAMES: Mapping[str, str] = {
    "cmi": "CMI",
    "gamma": "Gamma",
    "gamma_kl": "Gamma (KL)",
    "ncmi": "NCMI",
    "macro_f1": "Macro F1",
    "calibration": "Calibration error",
    "accuracy_gap": "Accuracy gap",
    "demographic_parity": "Demographic parity difference",
    "equalised_odds": "Equalised odds difference",
    "macro_std": "MacroStd",
    "class_accuracy": "Accuracy by class",
    "group_accuracy": "Accuracy by group",
}
"""Name of a value -> what the page calls it; others go by their own."""

CONCENTRATION = {"cmi": "nats", "gamma": "nats", "ncmi": "ratio"}
QUALITY = ("calibration", "macro_f1")
GAPS = ("accuracy_gap", "demographic_parity", "equalised_odds", "macro_std")


class Row(NamedTuple):
    """One line of the table of further metrics."""

    name: str
    pooled: Cell
    mean: Cell
    worst: Cell
    better: str
    definition: str


def figures(run: RunFolder) -> dict[str, Callable[[], Figure]]:
    """Return name -> how to draw it, for the figures that this run has something to show in."""
    known = {name for name in NAMES if len(_pooled(run, name))}
    drawn: dict[str, Callable[[], Figure]] = {}
    if known & set(CONCENTRATION):
        drawn["concentration"] = lambda: concentration(run)
    if known & set(QUALITY):
        drawn["quality"] = lambda: quality(run)
    if "group_accuracy" in known:
        drawn["groups"] = lambda: groups(run)
    return drawn


def concentration(run: RunFolder) -> Figure:
    """CMI, Gamma and NCMI of all clients' test examples together, over rounds."""
    names = [name for name in CONCENTRATION if len(_pooled(run, name))]
    drawing = figure(2.7)
    for axes, name in zip(drawing.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _line(axes, _pooled(run, name), BLUE, "all clients' examples together")
        _finish(axes, NAMES[name], CONCENTRATION[name], _rounds(_pooled(run, name)))
    return drawing


def quality(run: RunFolder) -> Figure:
    """Calibration error and macro F1: all examples together, and the clients."""
    names = [name for name in QUALITY if len(_pooled(run, name))]
    drawing = figure(3.3)
    panels = drawing.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        clients = _by_round(run, f"test_{name}")
        if len(clients):
            x = clients.index.to_numpy(float)
            axes.fill_between(x, clients["low"], clients["high"], color=SKY, alpha=0.5, linewidth=0,
                              label="10 % to 90 % of clients")  # fmt: skip
            axes.plot(x, clients["median"], color=BLUE, linestyle="--", marker=marker(x), markersize=3,
                      label="median client")  # fmt: skip
        _line(axes, _pooled(run, name), INK, "all clients' examples together")
        _finish(axes, NAMES[name], "error" if name == "calibration" else "score", _rounds(_pooled(run, name)))
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawing


def groups(run: RunFolder) -> Figure:
    """Accuracy of each group (left) and differences between groups (right) over rounds, all examples together."""
    table = _pooled(run, "group_accuracy")
    rates = np.array([[as_float(rate) for rate in row] for row in table]) * 100
    names = [str(name) for name in run.manifest.get("group_names") or range(rates.shape[1])]
    drawing = figure(3.6)
    left, right = drawing.subplots(1, 2)
    for place in range(rates.shape[1]):
        _line(left, pd.Series(rates[:, place], table.index), COLOURS[place % 8], short(names[place]), place)
    _finish(left, "Accuracy of each group", "test accuracy (%)", _rounds(table))
    for place, name in enumerate(GAPS):
        column = _pooled(run, name)
        if len(column):
            _line(right, 100 * column.astype(float), COLOURS[(place + 2) % 8], NAMES[name], place)
    _finish(right, "Differences between groups", "points", _rounds(table))
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(fontsize=8.5)
    return drawing


def rows(run: RunFolder) -> list[Row]:
    """Return a line for everything measured beside accuracy and loss, at the last evaluation."""
    said: Mapping[str, Any] = run.summary.get("metrics") or {}
    pooled: Mapping[str, Any] = run.summary.get("pooled") or {}
    fairness: Mapping[str, Any] = run.summary.get("fairness") or {}
    found = []
    for name, meaning in said.items():
        if name in ("accuracy", "loss"):
            continue
        block = fairness.get(f"test_{name}") or {}
        found.append(
            Row(
                NAMES.get(name, name.replace("_", " ")),
                _cell(pooled.get(name)),
                _cell(block.get("mean")),
                _cell(block.get("worst_10")),
                str(meaning.get("better", "")),
                str(meaning.get("definition", "")),
            )
        )
    return found


def _cell(value: Any) -> Cell:
    if isinstance(value, list):
        numbers = [as_float(item) for item in value]
        known = [item for item in numbers if not math.isnan(item)]
        text = f"{number(min(known))} to {number(max(known))}" if known else number(math.nan)
        return Cell(text, repr(numbers) if known else "")
    exact = as_float(value)
    return Cell(number(exact), "" if math.isnan(exact) else repr(exact))


def _pooled(run: RunFolder, name: str) -> pd.Series[Any]:
    """Return a pooled column by round, without the rounds that have no value."""
    column = f"pooled_{name}"
    if not {"round", column} <= set(run.rounds.columns):
        return pd.Series(dtype=float)
    # A resumed run may have written a round twice: the later row is the one it went on from.
    table = run.rounds.drop_duplicates("round", keep="last").sort_values("round").set_index("round")[column]
    return table[table.notna()]


def _by_round(run: RunFolder, column: str) -> pd.DataFrame:
    """Return the median and the tenths of a column of the clients, by round."""
    if column not in run.evaluations:
        return pd.DataFrame()
    by_round = run.evaluations.dropna(subset=[column]).groupby("round")[column]
    shares = {"low": 0.1, "median": 0.5, "high": 0.9}
    return pd.DataFrame({name: by_round.quantile(share) for name, share in shares.items()})


def _rounds(column: pd.Series[Any]) -> np.ndarray[Any, Any]:
    return column.index.to_numpy(float)


def _line(axes: Axes, column: pd.Series[Any], colour: str, label: str, place: int = 0) -> None:
    x = _rounds(column)
    axes.plot(x, column.to_numpy(float), color=colour, linestyle=LINES[place % 4], marker=marker(x), markersize=3,
              label=label)  # fmt: skip


def _finish(axes: Axes, title: str, unit: str, x: np.ndarray[Any, Any]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(unit, fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    plain_numbers(axes.yaxis)
    rounds_axis(axes, x, nbins=5)
