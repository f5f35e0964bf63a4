"""How each method spreads accuracy over the clients, and what it does to those that the baseline serves badly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedsim.fairness import tail_size
from fedsim.report.figures import MOST_STEPS
from fedsim.report.partition import MOST_COLUMNS, column_means
from fedsim.report.style import GREY, INK, SKY, VERMILLION, figure, short
from fedsim.study_report.labels import short_names
from fedsim.study_report.scene import MOST_COLOURS, OTHERS, Scene

_COLOURS = colormaps["cividis"].with_extremes(bad=OTHERS)

ROW = 0.24
"""Inches of a method's row: room for a name of 9 pt."""

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Map(NamedTuple):
    """Accuracy of the clients (columns) with each method (rows).

    Attributes:
        values: [methods, columns], fractions.
        methods: Names of the rows.
        clients: Names of the columns; empty where a column is not one client.
        columns: What a column is.
        about: What a cell is, for the caption.
    """

    values: NDArray[np.float64]
    methods: list[str]
    clients: list[str]
    columns: str
    about: str


def distribution(scene: Scene) -> Figure:
    """The clients' accuracies with each method, all pairs together, the worst tenth marked."""
    methods = scene.evaluated
    curves = len(methods) <= MOST_COLOURS
    height = max(3.4 if curves else 1.6, 1.3 + tall(methods) * len(methods))
    drawing = figure(height)
    if curves:
        left, right = drawing.subplots(1, 2, width_ratios=[1, 1.15])
        _cumulative(left, scene)
    else:
        right = drawing.add_subplot()
    _strips(right, scene)
    drawing.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return drawing


def _accuracies(scene: Scene, method: str) -> NDArray[np.float64]:
    return 100 * scene.final.loc[scene.final["method"] == method, "test_accuracy"].to_numpy(float)


def _cumulative(axes: Axes, scene: Scene) -> None:
    for method in scene.evaluated:
        values = _accuracies(scene, method)
        if len(values) > MOST_STEPS:
            values = np.quantile(values, np.linspace(0, 1, MOST_STEPS))
        line = "--" if method == scene.baseline else "-"
        axes.ecdf(values, color=scene.colour(method), linewidth=1.5, linestyle=line)
    axes.set(xlabel="test accuracy (%)", ylabel="share of clients with at most this", ylim=(0, 1.02))
    axes.axhline(0.1, color=VERMILLION, linewidth=0.8, linestyle=":")


def _strips(axes: Axes, scene: Scene) -> None:
    methods = scene.evaluated
    for row, method in enumerate(methods):
        values = _accuracies(scene, method)
        low, ten, quarter, middle, three, ninety, high = np.quantile(values, _QUANTILES)
        first = row == 0
        axes.hlines(row, low, high, color=GREY, linewidth=1.0, label="all clients" if first else "")
        axes.barh(
            row, ninety - ten, left=ten, height=0.34, color=SKY, alpha=0.5, linewidth=0,
            label="10 % to 90 %" if first else "",
        )  # fmt: skip
        axes.barh(
            row, three - quarter, left=quarter, height=0.34, color=SKY, linewidth=0,
            label="middle half" if first else "",
        )  # fmt: skip
        axes.vlines(
            middle, row - 0.28, row + 0.28, color=INK, linewidth=2.0, label="median client" if first else ""
        )
        worst = scene.worst_tenth(method)
        axes.plot(
            [] if worst is None else 100 * worst, [] if worst is None else row, marker="D", markersize=5.5,
            color=VERMILLION, linestyle="", label="mean of the worst 10 %" if first else "",
        )  # fmt: skip
    method_rows(axes, scene, methods)
    axes.set_xlabel("test accuracy (%)")
    axes.set_xlim(right=min(102.0, axes.get_xlim()[1]))


def tall(methods: list[str]) -> float:
    """Return the inches of a row that holds more than a name: less where there are many."""
    return ROW * (1.35 if len(methods) <= 20 else 1.1)


def method_rows(axes: Axes, scene: Scene, methods: list[str]) -> None:
    """Name the rows of a figure, the first method at the top; a dot has the colour of its line in other figures."""
    size = 9 if len(methods) <= 20 else 8.5
    axes.set_yticks(range(len(methods)), short_names(methods, 26), fontsize=size)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, pad=16 if len(scene.methods) <= MOST_COLOURS else 4)
    axes.grid(visible=False, axis="y")
    for row, (text, method) in enumerate(zip(axes.get_yticklabels(), methods, strict=True)):
        if method == scene.baseline:
            text.set_fontweight("bold")
        if len(scene.methods) <= MOST_COLOURS:
            axes.annotate(
                "\u25cf", (0, row), (-4, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                ha="right", va="center", fontsize=10, color=scene.colour(method), annotation_clip=False,
            )  # fmt: skip


def heat(scene: Scene) -> Map:
    """Return the clients' accuracies with each method, the columns from the client the baseline serves worst on.

    Client k is a person where the pairs share a partition, or the clients have names: then a column is that client,
    its values averaged over pairs. Otherwise client k is another one in each pair, and a column is a place in the
    baseline's order of clients in the same pair.
    """
    table, methods = scene.final, scene.evaluated
    reference = scene.baseline if scene.baseline in methods else methods[0]
    seen = {key: known for key, known in scene.study.manifests.items() if key[0] == scene.name}
    hashes = {known["sha256"] for known in seen.values()}
    namings = {tuple(sorted(known["names"].items())) for known in seen.values()}
    named = len(namings) == 1 and bool(next(iter(namings)))
    crossed = scene.study.info["design"].get("partitions")
    if len(hashes) == 1 or named:
        what = "all pairs have one partition" if len(hashes) == 1 else "the clients are the same in all pairs"
        return _by_client(table, methods, reference, f"mean over pairs; {what}")
    if crossed:
        first = table["partition"].dropna().min()
        rows = table[table["partition"] == first]
        methods = [m for m in methods if m in set(rows["method"])]
        reference = reference if reference in methods else methods[0]
        more = "; in other partitions client k is another client" if len(crossed) > 1 else ""
        return _by_client(rows, methods, reference, f"partition {first}, mean over its seeds{more}")
    return _by_place(table, methods, reference)


def _by_client(table: pd.DataFrame, methods: list[str], reference: str, about: str) -> Map:
    cells = table.pivot_table(index="method", columns="client", values="test_accuracy", aggfunc="mean")
    cells = cells.reindex(methods)
    order = np.argsort(cells.loc[reference].to_numpy(float), kind="stable")
    names = table.drop_duplicates("client").set_index("client")["name"]
    ids = [cells.columns[k] for k in order]
    clients = [str(names[k]) or str(k) for k in ids]
    columns = f"clients, from worst to best served by {short(reference, 30)}"
    return Map(cells.to_numpy(float)[:, order], methods, clients, columns, about)


def _by_place(table: pd.DataFrame, methods: list[str], reference: str) -> Map:
    maps = []
    for _, rows in table.groupby(["partition", "seed"], dropna=False):
        cells = rows.pivot_table(index="method", columns="client", values="test_accuracy", aggfunc="mean")
        if reference in cells.index:
            order = np.argsort(cells.loc[reference].to_numpy(float), kind="stable")
            maps.append(cells.reindex(methods).to_numpy(float)[:, order])
    width = max(found.shape[1] for found in maps)
    stack = np.full((len(maps), len(methods), width), np.nan)  # a client may have test examples in some pairs only
    for place, found in enumerate(maps):
        stack[place, :, : found.shape[1]] = found
    known = np.isfinite(stack)
    # Not nanmean: a method without a run has no column with a value, which is no reason for a warning.
    values = np.where(known, stack, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    columns = f"client's place in its pair, from worst to best served by {short(reference, 30)}"
    return Map(values, methods, [], columns, "mean over pairs; a column is another client in each pair")


def client_heat(scene: Scene) -> Figure:
    """A heat map of clients by methods."""
    found = heat(scene)
    values, methods = found.values, found.methods
    many = values.shape[1] > MOST_COLUMNS
    shown = column_means(values.T).T if many else values
    drawing = figure(1.9 + (1.1 * ROW if len(methods) <= 20 else ROW) * len(methods))
    axes = drawing.add_subplot()
    image = axes.imshow(100 * shown, aspect="auto", cmap=_COLOURS, interpolation="none")
    method_rows(axes, scene, methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(visible=False)
    named = [short(name, 14) for name in found.clients]
    if named and sum(map(len, named)) <= 160:
        turned = sum(map(len, named)) > 80
        axes.set_xticks(range(len(named)), named, rotation=90 if turned else 0, fontsize=8.5)
        axes.tick_params(axis="x", length=0)
    elif named or many:
        axes.set_xticks([])
    else:
        ticks = MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True).tick_values(1, shown.shape[1])
        kept = sorted({1, *(int(tick) for tick in ticks if 1 <= tick <= shown.shape[1])})
        axes.set_xticks([tick - 1 for tick in kept], [str(tick) for tick in kept])
    more = f"; a column is the mean of about {values.shape[1] / MOST_COLUMNS:.0f}" if many else ""
    axes.set_xlabel(f"{found.columns}{more}")
    axes.axvline(tail_size(shown.shape[1], 0.1) - 0.5, color="white", linewidth=1.2, linestyle=":")
    bar = drawing.colorbar(image, ax=axes, label="test accuracy (%)", pad=0.015, fraction=0.03)
    bar.outline.set_visible(False)
    return drawing
