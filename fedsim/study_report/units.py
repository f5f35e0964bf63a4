"""How each measure is shown: its name, its unit and its digits, in tables, figures and LaTeX."""

from __future__ import annotations

import math
from typing import NamedTuple

from fedsim.fairness import CONVENTIONS, LEVELS
from fedsim.report.tables import NAMES

LOSS = "loss_"
"""Begins the measures of test loss; all others are of test accuracy."""

DASH = "\u2013"
MINUS = "\u2212"


class Unit(NamedTuple):
    """The unit of a measure.

    Attributes:
        factor: What the value in study.json is multiplied with.
        level: Unit of a value; "" where it has none.
        gap: Unit of a difference.
        digits: After the decimal point.
    """

    factor: float
    level: str
    gap: str
    digits: int


def unit(metric: str) -> Unit:
    """Return the unit of a measure: accuracies in percent, their differences in points."""
    name = metric.removeprefix(LOSS)
    if name == "n":
        return Unit(1.0, "", "", 0)
    if name == "angle_deg":
        return Unit(1.0, "°", "°", 2)
    if metric.startswith(LOSS) and name in {*LEVELS, "std"}:
        return Unit(1.0, "nats", "nats", 3)
    if metric.startswith(LOSS):
        return Unit(1.0, "", "", 4)
    if name in LEVELS:
        return Unit(100.0, "%", "points", 2)
    if name == "std":
        return Unit(100.0, "points", "points", 2)
    if name == "variance":
        return Unit(1e4, "points²", "points²", 1)
    return Unit(1.0, "nats" if name in ("kl", "entropy") else "", "", 4)


def title(metric: str) -> str:
    """Return what a measure is called.

    >>> title("worst_10"), title("loss_mean")
    ('Worst 10 %', 'Mean loss')
    """
    name = metric.removeprefix(LOSS)
    known = NAMES.get(name, name.replace("_", " "))
    if not metric.startswith(LOSS):
        return "Mean accuracy" if name == "mean" else known
    return "Mean loss" if name == "mean" else f"{known} of losses"


def heading(metric: str) -> str:
    """Return a measure's name with its unit.

    >>> heading("mean"), heading("std"), heading("gini")
    ('Mean accuracy (%)', 'Standard deviation (points)', 'Gini')
    """
    level = unit(metric).level
    return f"{title(metric)} ({level})" if level else title(metric)


def definition(metric: str) -> str:
    """Return what a measure is, in one line; "" for one that is not ours."""
    name = metric.removeprefix(LOSS)
    return CONVENTIONS[name][0] if name in CONVENTIONS else ""


def number(metric: str, value: float | None) -> str:
    """Return a value in its unit, without naming it.

    >>> number("mean", 0.84213), number("mean", None)
    ('84.21', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH if value is None or math.isnan(value) else str(value)
    shown = unit(metric)
    return f"{value * shown.factor:.{shown.digits}f}".replace("-", MINUS)


def signed(metric: str, value: float | None) -> str:
    """Return a difference with its sign.

    >>> signed("mean", 0.0123), signed("std", -0.0001)
    ('+1.23', '−0.01')
    """
    text = number(metric, value)
    if text.strip("0.") in ("", MINUS):
        return text.removeprefix(MINUS)
    return text if text[0] in (MINUS, DASH) or value is None or value <= 0 else f"+{text}"


def spread(metric: str, mean: float | None, std: float | None) -> str:
    """Return mean and deviation over pairs; without the latter where there is one pair.

    >>> spread("mean", 0.84213, 0.0121)
    '84.21 ± 1.21'
    """
    return number(metric, mean) if std is None else f"{number(metric, mean)} ± {number(metric, std)}"


def between(metric: str, interval: list[float] | None) -> str:
    """Return an interval of differences in brackets; "" for None.

    >>> between("mean", [0.01, 0.036])
    '[+1.00, +3.60]'
    """
    return f"[{signed(metric, interval[0])}, {signed(metric, interval[1])}]" if interval else ""


def chance(p: float | None) -> str:
    """Return a p value; small ones as a bound.

    >>> chance(0.03127), chance(0.00002), chance(None)
    ('0.031', '< 0.001', '–')
    """
    if p is None or math.isnan(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plain(value: float | None, digits: int = 2) -> str:
    """Return a number without a unit.

    >>> plain(-1.234), plain(None)
    ('−1.23', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    return f"{value:.{digits}f}".replace("-", MINUS)
