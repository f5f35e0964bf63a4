"""What the clients' hooks reported, over rounds."""

from __future__ import annotations

import tomllib

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.report.folder import RunFolder
from fedsim.report.style import BLUE, SKY, figure, marker, plain_numbers, rounds_axis

ACROSS = 3
"""Panels side by side."""


def columns(run: RunFolder) -> list[str]:
    """Return the columns of the clients' table that hooks wrote, where they hold a finite number."""
    try:
        hooks = tomllib.loads(run.scenario).get("client", {}).get("hooks", [])
    except tomllib.TOMLDecodeError:
        return []
    named = [hook if isinstance(hook, str) else str(hook.get("name", "")) for hook in hooks]
    files = tuple(f"{name.partition(':')[0].rpartition('.')[2]}_" for name in named)
    return [
        str(column)
        for column in run.clients.columns
        if files and str(column).startswith(files) and np.isfinite(run.clients[column].astype(float)).any()
    ]


def reported(run: RunFolder) -> Figure:
    """What each hook reported, over rounds: the sampled clients' median and tenths."""
    names = columns(run)
    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    drawing = figure(2.7 * down)
    panels = drawing.subplots(down, across, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        table = run.clients.drop_duplicates(["round", "client"], keep="last")
        values: pd.Series[float] = table[name].astype(float).where(np.isfinite(table[name].astype(float)))
        by_round = values.groupby(table["round"])
        middle = by_round.median().dropna()
        x = middle.index.to_numpy(float)
        low, high = by_round.quantile(0.1)[middle.index], by_round.quantile(0.9)[middle.index]
        axes.fill_between(x, low, high, color=SKY, alpha=0.5, linewidth=0, label="10 % to 90 % of sampled clients")
        axes.plot(x, middle, color=BLUE, marker=marker(x), markersize=3, label="median sampled client")
        axes.set_title(name.replace("_", " "), fontsize=10)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        plain_numbers(axes.yaxis)
        rounds_axis(axes, x, nbins=5)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawing
