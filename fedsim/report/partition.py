"""The figure of the partition: how many examples of which class each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from fedsim.report.style import BLUE, INK, figure, short

MOST_NAMED_CLIENTS = 30

MOST_COLUMNS = 1000
"""Columns that a screen can show; of more clients, several share one."""


def partition(counts: NDArray[np.int64], class_names: Sequence[str], client_names: Sequence[str]) -> Figure:
    """Clients across, classes up; above, how much each client holds.

    Colour is the share of the client's own examples, so small clients are as visible as large ones. Up to
    thirty clients keep their order and their names; more are put in order of their main class, so that a
    thousand columns still show what the split does. Beyond a thousand a column is the mean of several clients.

    Args:
        counts: [K, C] training examples.
        class_names: C names.
        client_names: K names.
    """
    num_clients, num_classes = counts.shape
    named = num_clients <= MOST_NAMED_CLIENTS
    order = np.arange(num_clients) if named else by_main_class(counts)
    ordered = counts[order]
    totals = ordered.sum(axis=1)
    shares = ordered / np.maximum(totals, 1)[:, None] * 100
    if num_clients > MOST_COLUMNS:
        totals, shares = column_means(totals), column_means(shares)

    # Up to the next tenth above what occurs: with eighty classes nobody holds the whole of one.
    top = float(np.clip(np.ceil(shares.max() / 10) * 10, 10, 100))
    rows = float(np.clip(0.24 * num_classes, 1.1, 6.5))
    drawing = figure(rows + 2.3)
    above, main = drawing.subplots(2, 1, height_ratios=[1.1, rows], sharex=True)
    _totals(above, totals, named=named)
    image = main.imshow(
        shares.T,
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=top,
        interpolation="none",
        origin="lower",
        rasterized=True,
    )
    drawing.colorbar(
        image, ax=main, label="share of the\nclient's examples (%)", pad=0.015, aspect=max(8, rows * 5)
    )
    _class_labels(main, class_names, rows)
    _client_labels(main, [client_names[k] for k in order] if named else None, num_clients)
    if named and num_clients * num_classes <= 240:
        _write_counts(main, ordered, shares / top)
    return drawing


def by_main_class(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the clients in order of their main class, the most concentrated first.

    Args:
        counts: [K, C].

    Returns:
        [K] client positions.
    """
    shares = counts / np.maximum(counts.sum(axis=1), 1)[:, None]
    return np.lexsort((-shares.max(axis=1), shares.argmax(axis=1))).astype(np.int64)


def column_means(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means of neighbours, `MOST_COLUMNS` of them, each of about as many clients.

    Args:
        values: [K, ...], K at least `MOST_COLUMNS`.
    """
    edges = np.linspace(0, len(values), MOST_COLUMNS + 1).astype(np.int64)
    sums = np.add.reduceat(values.astype(np.float64), edges[:-1], axis=0)
    return np.asarray(sums / np.diff(edges).reshape(-1, *[1] * (values.ndim - 1)))


def _totals(axes: Axes, totals: NDArray[Any], *, named: bool) -> None:
    edges = np.arange(len(totals) + 1) - 0.5
    axes.stairs(totals, edges, fill=True, color=BLUE, alpha=0.85)
    if named:
        axes.vlines(edges[1:-1], 0, totals.max() or 1, color="white", linewidth=1.5)
    axes.set_ylabel("training\nexamples")
    axes.set_ylim(0, (totals.max() or 1) * 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\u202f")))
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.grid(visible=False, axis="x")


def _class_labels(axes: Axes, class_names: Sequence[str], rows: float) -> None:
    # 0.15 inch is the least a 9 pt label needs; beyond that, every second or third class is named.
    step = int(np.ceil(0.15 * len(class_names) / rows))
    ticks = list(range(0, len(class_names), step))
    axes.set_yticks(ticks, [short(class_names[c]) for c in ticks], fontsize=9)
    axes.set_ylabel("class")
    axes.grid(visible=False)


def _client_labels(axes: Axes, names: Sequence[str] | None, num_clients: int) -> None:
    if names is None:
        means = f"; a column is the mean of about {num_clients / MOST_COLUMNS:.0f}"
        more = means if num_clients > MOST_COLUMNS else ""
        axes.set_xlabel(f"{num_clients} clients, in order of their main class{more}")
        axes.tick_params(axis="x", labelbottom=False, length=0)
        return
    labels = [short(name, 14) for name in names]
    turned = max(map(len, labels)) * len(labels) > 100
    axes.set_xticks(range(num_clients), labels, rotation=90 if turned else 0, fontsize=9)
    axes.tick_params(axis="x", labelbottom=True, length=0)
    axes.set_xlabel("client")


def _write_counts(axes: Axes, counts: NDArray[np.int64], shades: NDArray[np.float64]) -> None:
    size = 9 if len(counts) <= 12 else 7
    for client, row in enumerate(counts):
        for label, count in enumerate(row):
            if count:
                colour = "white" if shades[client, label] > 0.55 else INK
                text = axes.text(client, label, str(count), ha="center", va="center", fontsize=size, color=colour)
                text.set_in_layout(False)  # it lies inside the axes: nothing to make room for
