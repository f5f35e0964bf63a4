"""The tables of the page: numbers as text, with the exact value kept beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedsim.fairness import CONVENTIONS, LEVELS, better
from fedsim.report.folder import Record, RunFolder
from fedsim.report.words import by_service, dominant_classes, percent

MOST_ROWS = 20

NAMES: Mapping[str, str] = {
    "n": "Clients",
    "mean": "Mean",
    "weighted_mean": "Mean over examples",
    "std": "Standard deviation",
    "variance": "Variance",
    "min": "Minimum",
    "max": "Maximum",
    "worst_5": "Worst 5 %",
    "worst_10": "Worst 10 %",
    "best_5": "Best 5 %",
    "best_10": "Best 10 %",
    "angle_deg": "Angle",
    "kl": "KL to uniform",
    "entropy": "Entropy",
    "jain": "Jain's index",
    "gini": "Gini",
    "cv": "Coefficient of variation",
}


class Cell(NamedTuple):
    """What is shown, and the exact number behind it."""

    text: str
    value: str


class Measure(NamedTuple):
    """One line of the table of measures."""

    name: str
    accuracy: Cell
    loss: Cell
    better: str
    definition: str


class Client(NamedTuple):
    """One line of the table of badly served clients."""

    client: int
    name: str
    accuracy: str
    interval: str
    loss: str
    test_examples: int
    train_examples: int
    classes: str


def measures(run: RunFolder) -> list[Measure]:
    """Return every fairness measure of the last evaluation, with its definition."""
    accuracy, loss = run.fairness("test_accuracy"), run.fairness("test_loss")
    if not accuracy and not loss:
        return []
    return [
        Measure(
            NAMES[name],
            accuracy=_cell(accuracy, name, _accuracy_text),
            loss=_cell(loss, name, _loss_text),
            better=_better(name),
            definition=definition,
        )
        for name, (definition, _) in CONVENTIONS.items()
    ]


def badly_served(run: RunFolder) -> list[Client]:
    """Return the worst served clients: the worst tenth, at least five, at most twenty."""
    if not len(run.final):
        return []
    rows = by_service(run.final).head(min(MOST_ROWS, max(5, run.num_clients // 10)))
    return [
        Client(
            client=int(str(client)),
            name=str(row["name"]),
            accuracy=percent(float(row["test_accuracy"])),
            interval=wilson(float(row["test_accuracy"]), int(row["test_examples"])),
            loss=_three_digits(float(row["test_loss"])),
            test_examples=int(row["test_examples"]),
            train_examples=int(row["train_examples"]),
            classes=dominant_classes(run, int(str(client))),
        )
        for client, row in rows.iterrows()
    ]


def wilson(accuracy: float, examples: int) -> str:
    """Return the 95 % interval of an accuracy measured on so many examples (Wilson's score interval).

    >>> wilson(0.5, 100).replace(chr(160), " ")
    '40 to 60 %'
    """
    if examples <= 0:
        return "\u2013"
    z = 1.96
    middle = (accuracy + z * z / (2 * examples)) / (1 + z * z / examples)
    spread = accuracy * (1 - accuracy) / examples + z * z / (4 * examples * examples)
    half = z * math.sqrt(spread) / (1 + z * z / examples)
    return f"{100 * max(0.0, middle - half):.0f} to {100 * min(1.0, middle + half):.0f}\u00a0%"


def environment(run: RunFolder) -> list[tuple[str, str]]:
    """Return the environment as (name, value) lines; nested entries become "outer.inner"."""
    return list(_flat(run.environment, ""))


def number(value: float) -> str:
    """Return a number with four significant digits; a dash for NaN.

    >>> number(0.123456), number(float("nan"))
    ('0.1235', '–')
    """
    return "\u2013" if math.isnan(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Return seconds in words.

    >>> duration(3.21), duration(75), duration(7300)
    ('3.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def time_spent(run: RunFolder) -> str:
    """Return the run's time and its parts in one line; empty if the summary has none."""
    parts = {str(k): as_float(v) for k, v in (run.summary.get("seconds") or {}).items()}
    known = {name: duration(value) for name, value in parts.items() if not math.isnan(value)}
    total = known.pop("total", "")
    details = ", ".join(f"{name} {value}" for name, value in known.items())
    return f"{total} ({details})" if total and details else total or details


def as_float(value: Any) -> float:
    """Return a JSON number as float; null and absent become NaN."""
    return float(value) if isinstance(value, int | float) else math.nan


def _three_digits(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.3f}"


def _cell(block: Record, name: str, text: Any) -> Cell:
    value = as_float(block.get(name))
    return Cell("\u2013", "") if math.isnan(value) else Cell(text(name, value), repr(value))


def _accuracy_text(name: str, value: float) -> str:
    if name in LEVELS:
        return percent(value, 2)
    if name == "std":
        return f"{100 * value:.2f} points"
    if name == "variance":
        return f"{1e4 * value:.1f} points²"
    return _plain(name, value)


def _loss_text(name: str, value: float) -> str:
    return _plain(name, value)


def _plain(name: str, value: float) -> str:
    if name == "n":
        return f"{value:.0f}"
    return f"{value:.2f}°" if name == "angle_deg" else number(value)


def _better(name: str) -> str:
    accuracy, loss = better(name, higher_is_better=True), better(name, higher_is_better=False)
    if accuracy == "neither":
        return "\u2013"
    return accuracy if accuracy == loss else f"{accuracy} / {loss}"


def _flat(record: Record, prefix: str) -> Any:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{key}", text if value is not None else "\u2013"
