"""Accuracy against simulated time and against traffic, where a scenario has a table [system]."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedsim.report.folder import RunFolder
from fedsim.report.style import BLUE, VERMILLION, figure, marker, plain_numbers

NEEDED = ("round", "simulated_time", "bytes_down", "bytes_up", "mean_accuracy", "worst_10")

TIMES = ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))

Values = NDArray[np.float64]


def known(run: RunFolder) -> pd.DataFrame:
    """Return the evaluated rounds with the time and the traffic, in bytes, that it took to get there."""
    if not set(NEEDED) <= set(run.rounds.columns):
        return pd.DataFrame()
    # A resumed run may have written a round twice: the later row is the one it went on from.
    rounds = run.rounds.drop_duplicates("round", keep="last").sort_values("round")
    traffic = (rounds["bytes_down"] + rounds["bytes_up"]).cumsum()
    return rounds.assign(traffic=traffic).dropna(subset=["mean_accuracy"])


def accuracy_against_cost(run: RunFolder) -> Figure:
    """Mean and worst tenth of the clients' accuracies against simulated time (left) and traffic (right)."""
    table = known(run)
    drawing = figure(3.6)
    left, right = drawing.subplots(1, 2, sharey=True)
    time, unit = scaled(table["simulated_time"].to_numpy(float), TIMES)
    traffic, size = scaled(table["traffic"].to_numpy(float), SIZES)
    labels = {left: (time, f"simulated time ({unit})"), right: (traffic, f"traffic, down and up ({size})")}
    for axes, (x, label) in labels.items():
        for column, colour, name in (
            ("mean_accuracy", BLUE, "mean of the clients"),
            ("worst_10", VERMILLION, "mean of the worst 10 %"),
        ):
            y = table[column].to_numpy(float) * 100
            axes.plot(x, y, color=colour, marker=marker(x), markersize=4, label=name)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        plain_numbers(axes.xaxis)
        axes.set_xlim(left=-0.02 * max(float(x.max()), 1e-12))
    left.set_ylabel("test accuracy (%)")
    left.set_ylim(0, 102)
    drawing.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawing


def summary(run: RunFolder) -> list[tuple[str, str]]:
    """Return what the run cost, as name and words."""
    totals: dict[str, Any] = run.summary.get("system") or {}
    if not totals:
        return []
    asked = int(totals.get("num_selected") or 0)
    lines = {
        "simulated time": _amount(totals.get("simulated_time"), TIMES),
        "sent to clients": _amount(totals.get("bytes_down"), SIZES),
        "sent by clients": _amount(totals.get("bytes_up"), SIZES),
        "lost on the way": _share(totals.get("num_dropped"), asked),
        "late": _share(totals.get("num_late"), asked),
        "rounds without an answer": str(totals.get("rounds_without_answers", 0)),
    }
    return list(lines.items())


def scaled(values: Values, units: tuple[tuple[float, str], ...]) -> tuple[Values, str]:
    """Return values in the largest unit that their largest is not below two of, and its name.

    >>> scaled(np.array([60.0, 7200.0]), TIMES)[1]
    'hours'
    """
    largest = float(values.max(initial=0.0))
    size, name = next((unit for unit in units if largest >= 2 * unit[0]), units[-1])
    return values / size, name


def _amount(value: Any, units: tuple[tuple[float, str], ...]) -> str:
    found, unit = scaled(np.array([float(value or 0.0)]), units)
    return f"{found[0]:.3g} {unit}" if found[0] < 1000 else f"{found[0]:.0f} {unit}"


def _share(count: Any, asked: int) -> str:
    number = int(count or 0)
    share = f" ({100 * number / asked:.1f}\u00a0%)" if asked else ""
    return f"{number} of {asked} clients asked{share}"
