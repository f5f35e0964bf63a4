"""The figures of a run that show accuracies and losses: plain tables in, matplotlib figures out.

Accuracies arrive as fractions and are drawn in percent. Draw inside `style.styled()`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedsim.fairness import tail_size
from fedsim.report.style import BLUE, INK, SKY, VERMILLION, figure, marker, plain_numbers, rounds_axis

Values = NDArray[np.float64]

MOST_STEPS = 2000
"""Steps of an outline, and points that are drawn one by one; more become a picture."""


def accuracy_over_rounds(evaluations: pd.DataFrame, rounds: pd.DataFrame) -> Figure:
    """Median, bands and worst tenth of the clients' accuracies after each evaluated round.

    Args:
        evaluations: Columns round, client, test_accuracy (no NaN).
        rounds: May have columns round and central_accuracy, the accuracy on the common test set.
    """
    by_round = evaluations.groupby("round")["test_accuracy"]
    x = np.unique(evaluations["round"].to_numpy(float))
    sorted_values = [np.sort(values.to_numpy(float)) * 100 for _, values in by_round]  # in order of round
    low, ten, middle, ninety, high = np.array([np.quantile(v, [0, 0.1, 0.5, 0.9, 1]) for v in sorted_values]).T
    worst = [v[: tail_size(len(v), 0.1)].mean() for v in sorted_values]

    drawing = figure(4.4)
    axes = drawing.add_subplot()
    axes.fill_between(x, low, high, color=SKY, alpha=0.22, linewidth=0, label="all clients")
    axes.fill_between(x, ten, ninety, color=SKY, alpha=0.55, linewidth=0, label="10 % to 90 % of clients")
    axes.plot(x, middle, color=BLUE, marker=marker(x), markersize=4, label="median client")
    axes.plot(x, worst, color=VERMILLION, marker=marker(x), markersize=4, label="mean of the worst 10 %")
    if {"round", "central_accuracy"} <= set(rounds.columns):
        central = rounds.dropna(subset=["central_accuracy"])
        if len(central):
            y = central["central_accuracy"].to_numpy(float) * 100
            axes.plot(
                central["round"].to_numpy(float),
                y,
                color=INK,
                linestyle="--",
                marker=marker(y),
                markersize=3,
                label="common test set",
            )
    if len(x) == 1:  # bands have no width over a single round
        axes.vlines(x, low, high, color=SKY, alpha=0.4, linewidth=10)
        axes.vlines(x, ten, ninety, color=SKY, linewidth=10)
    rounds_axis(axes, x)
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(max(-2.0, low.min() - 3), 102)
    drawing.legend(loc="outside lower center", ncols=5)
    return drawing


def accuracy_distribution(accuracies: Values) -> Figure:
    """Every client's accuracy from worst to best, and how many clients see which accuracy.

    Args:
        accuracies: [K] fractions, no NaN.
    """
    values = np.sort(np.asarray(accuracies, float)) * 100
    drawing = figure(4.2)
    left, right = drawing.subplots(1, 2, width_ratios=[3, 2])
    _sorted_clients(left, values, tail_size(len(values), 0.1))
    _histogram(right, values)
    drawing.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawing


def _sorted_clients(axes: Axes, values: Values, tail: int) -> None:
    # One outline instead of K bars: a thousand clients stay one light path.
    edges = np.arange(len(values) + 1)
    axes.stairs(*_outline(values), fill=True, color=SKY, alpha=0.8, label="clients")
    axes.stairs(*_outline(values[:tail]), fill=True, color=VERMILLION, label="worst 10 %")
    if len(values) <= 60:
        axes.vlines(edges[1:-1], 0, np.minimum(values[:-1], values[1:]), color="white", linewidth=1.2)
    axes.hlines(values.mean(), 0, len(values), color=INK, linestyle="--", label="mean")
    axes.hlines(
        values[:tail].mean(), 0, len(values), color=VERMILLION, linestyle=":", label="mean of the worst 10 %"
    )
    axes.set(xlabel="clients, from worst to best", ylabel="test accuracy (%)", ylim=(0, 102))
    axes.set_xlim(0, len(values))
    steps = MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True).tick_values(1, len(values))
    ticks = sorted({1, *(int(tick) for tick in steps if 1 <= tick <= len(values))})
    axes.set_xticks([tick - 0.5 for tick in ticks], [str(tick) for tick in ticks])
    axes.grid(visible=False, axis="x")


def _outline(values: Values) -> tuple[Values, Values]:
    """Return the steps of an outline and their edges; of very many clients a step is the mean of several."""
    edges = np.linspace(0, len(values), min(len(values), MOST_STEPS) + 1).round()
    sums = np.add.reduceat(values, edges[:-1].astype(np.int64))
    return sums / np.diff(edges), edges


def _histogram(axes: Axes, values: Values) -> None:
    span = max(float(np.ptp(values)), 2.0)
    bins = int(np.clip(np.ceil(2 * np.sqrt(len(values))), 4, 30))
    low = max(0.0, min(float(values.min()), 100 - span))
    counts, edges = np.histogram(values, bins=bins, range=(low, low + span))
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
    axes.set(xlabel="test accuracy (%)", ylabel="clients")
    axes.set_ylim(0, counts.max() * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(visible=False, axis="x")


def accuracy_against_size(accuracies: Values, train_examples: Values) -> Figure:
    """Final accuracy of each client against how much it has to train on.

    Args:
        accuracies: [K] fractions, no NaN.
        train_examples: [K] counts.
    """
    y, x = np.asarray(accuracies, float) * 100, np.asarray(train_examples, float)
    order = np.argsort(y, kind="stable")
    tail = tail_size(len(y), 0.1)
    size = float(np.clip(2500 / len(y), 10, 45))
    drawing = figure(3.8)
    axes = drawing.add_subplot()
    faint = 0.45 if len(y) > 200 else 0.8
    rest = order[tail:]
    picture = len(y) > MOST_STEPS
    axes.scatter(
        x[rest], y[rest], s=size, color=BLUE, alpha=faint, linewidths=0, label="clients", rasterized=picture
    )
    axes.scatter(
        x[order[:tail]],
        y[order[:tail]],
        s=size,
        color=VERMILLION,
        marker="D",
        linewidths=0,
        label="worst 10 %",
        rasterized=picture,
    )
    positive = x[x > 0]
    if len(positive) == len(x) and x.max() > 20 * x.min():
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    elif np.ptp(x) == 0:
        axes.set_xlim(x[0] - 1, x[0] + 1)
    axes.set(xlabel="training examples of the client", ylabel="test accuracy (%)")
    axes.set_ylim(max(-2.0, y.min() - 4), 101.5)
    drawing.legend(loc="outside lower center", ncols=2)
    return drawing


def training_loss(rounds: pd.DataFrame) -> Figure:
    """Mean training loss of the sampled clients at the weights they received.

    Args:
        rounds: Columns round and mean_loss.
    """
    known = rounds.dropna(subset=["mean_loss"]).sort_values("round")
    known = known[np.isfinite(known["mean_loss"].to_numpy(float))]
    x, y = known["round"].to_numpy(float), known["mean_loss"].to_numpy(float)
    drawing = figure(3.2)
    axes = drawing.add_subplot()
    noisy = len(x) > 50
    axes.plot(
        x,
        y,
        color=SKY if noisy else BLUE,
        linewidth=1.0 if noisy else 1.8,
        marker=marker(x),
        markersize=4,
        label="each round",
    )
    if noisy:
        smooth = pd.Series(y).rolling(window=max(5, len(x) // 40), center=True, min_periods=1).mean()
        axes.plot(x, smooth.to_numpy(float), color=BLUE, label="running mean")
        drawing.legend(loc="outside lower center", ncols=2)
    if y.min() > 0 and y.max() > 30 * y.min():
        axes.set_yscale("log")
        plain_numbers(axes.yaxis)
    rounds_axis(axes, x)
    axes.set_ylabel("mean training loss (nats)")
    return drawing
