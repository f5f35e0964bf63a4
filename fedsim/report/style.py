"""How every figure looks, and how it becomes SVG text that can stand inside a page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

# Okabe and Ito: told apart with every common colour vision, and in grey by their lightness.
BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
)
INK, GREY, PALE = "#222222", "#767676", "#E4E4E4"

WIDTH = 9.4
"""Inches: fills the page's column at its natural size, so that 10 pt text is 10 pt on a laptop."""

_RC: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # client and class names are text, also when they hold dollar signs
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text: searchable, and drawn by any font of the reader
    "svg.hashsalt": "fedsim",  # the same figure is the same bytes
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with the house style."""
    with mpl.rc_context(_RC):
        yield


def figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of this size in inches; no pyplot, so nothing has to be closed."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(drawing: Figure, label: str, *, prefix: str) -> str:
    """Return a figure as an <svg> element.

    Args:
        drawing: The figure.
        label: What it shows, for those who do not see it.
        prefix: Put before every id inside: several figures share one page.
    """
    buffer = io.StringIO()
    with styled(), warnings.catch_warnings():
        # Only the measuring font lacks these glyphs; the reader's browser draws the text itself.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Inside tags only: a client may be called anything.
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag[0]), text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def rounds_axis(axes: Axes, rounds: Sequence[float] | np.ndarray[Any, Any], *, nbins: int = 8) -> None:
    """Label the x axis as rounds: whole numbers, from the first to the last."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=nbins, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    first, last = float(np.min(rounds)), float(np.max(rounds))
    margin = 0.02 * (last - first) if last > first else 0.5
    axes.set_xlim(first - margin, last + margin)


def plain_numbers(axis: Axis) -> None:
    """Write ticks out in full, without the common factor or the powers that need mathematical text."""
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e"))
    )
    axis.set_minor_formatter(NullFormatter())


def marker(rounds: Sequence[float] | np.ndarray[Any, Any]) -> str:
    """Return the marker of a line: points where they are few, since one or two make no line."""
    return "o" if len(rounds) <= 25 else ""


def short(text: str, length: int = 16) -> str:
    """Return a name that fits beside an axis.

    >>> short("a very long client name indeed")
    'a very long cli…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"
