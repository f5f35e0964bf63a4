"""Names in figures: short ones that stay different, and a place for each where it covers nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from fedsim.report.style import GREY

Points = NDArray[np.float64]

_DISTANCES = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 80.0, 100.0)
_ANGLES = np.radians([0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 67, -67, 113, -113])
_LEADER = 14.0
"""Points of distance from which a line says whose name it is."""


def short_names(labels: Sequence[str], length: int = 28) -> list[str]:
    """Return labels of at most `length` characters that are as different as before.

    >>> short_names(["adafed[scale=min,gamma=1]", "adafed[scale=min,gamma=2]", "afl"], 16)
    ['adafed[scale…(1)', 'adafed[scale…(2)', 'afl']
    """
    cut = [label if len(label) <= length else f"{label[: length - 1]}…" for label in labels]
    found, seen = [], dict.fromkeys(cut, 0)
    for label, name in zip(labels, cut, strict=True):
        if name == label or cut.count(name) == 1:
            found.append(name)
            continue
        seen[name] += 1
        mark = f"…({seen[name]})"
        found.append(f"{label[: length - len(mark)]}{mark}")
    return found


def ticks(axis: Axis, count: int = 6) -> None:
    """Set about `count` round ticks, written out in full and all with the same decimals."""
    axis.set_major_locator(MaxNLocator(nbins=count, steps=[1, 2, 5, 10]))
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    axis.set_major_formatter(formatter)


def legend(drawing: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Write a legend below the panels, in as many columns as the figure is wide."""
    # An entry is its handle, the gaps around it and some 6 points a letter; the figure is 677 points wide.
    columns = max(1, min(len(names), int(670 / (52 + 6 * max(map(len, names), default=1)))))
    drawing.legend(handles, names, loc="outside lower center", ncols=columns)


def place(
    axes: Axes,
    points: Points,
    names: Sequence[str],
    *,
    size: float,
    colours: Sequence[str],
    mark: str,
    lines: Points | None = None,
) -> list[Bbox]:
    """Write a name beside each point so that names cover neither each other nor a point, as far as there is room.

    The layout of the figure is fixed by this: call it last.

    Args:
        axes: With its final limits.
        points: [M, 2] in data coordinates.
        names: M names.
        size: Of the font, in points.
        colours: Of each name.
        lines: [L, 2, 2], the ends of lines in data coordinates that are better not written on.
        mark: Begins the id of each name in the SVG; another for each axes of a figure.

    Returns:
        Where the names stand, in pixels of the canvas, in the order given.
    """
    drawing = axes.figure
    assert isinstance(drawing, Figure)
    drawing.draw_without_rendering()
    drawing.set_layout_engine("none")
    pixels = float(drawing.dpi) / 72.0
    at = np.asarray(axes.transData.transform(points), dtype=np.float64)
    room = axes.get_window_extent()
    marks = np.column_stack([at - 4 * pixels, at + 4 * pixels])
    strokes = np.empty((0, 4))
    if lines is not None and len(lines):
        ends = np.asarray(axes.transData.transform(lines.reshape(-1, 2)), dtype=np.float64).reshape(-1, 2, 2)
        strokes = np.column_stack([ends.min(axis=1) - pixels / 2, ends.max(axis=1) + pixels / 2])
    taken: NDArray[np.float64] = np.empty((0, 4))
    boxes: dict[int, Bbox] = {}
    # Those with the closest neighbours first: the others have more room to choose from.
    gaps = np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)) + np.where(np.eye(len(at)), np.inf, 0)
    for index in np.argsort(gaps.min(axis=1), kind="stable") if len(at) > 1 else range(len(at)):
        width, height = _size(names[index], size, pixels)
        candidates = _candidates(at[index], width, height, pixels)
        boxes_at = candidates[:, :4]
        cost = candidates[:, 4] / pixels
        cost = cost + 40.0 * _overlap(boxes_at, taken) / pixels**2 + 8.0 * _overlap(boxes_at, marks) / pixels**2
        cost = cost + 0.5 * _overlap(boxes_at, strokes) / pixels**2
        outside = (
            np.maximum(room.x0 - boxes_at[:, 0], 0) + np.maximum(boxes_at[:, 2] - room.x1, 0)
            + np.maximum(room.y0 - boxes_at[:, 1], 0) + np.maximum(boxes_at[:, 3] - room.y1, 0)
        )  # fmt: skip
        best = boxes_at[int(np.argmin(cost + 1000.0 * outside))]
        taken = np.vstack([taken, best])
        boxes[int(index)] = Bbox.from_extents(*best)
        text = _write(axes, names[index], boxes[int(index)], at[index], pixels)
        text.set(fontsize=size, color=colours[index], gid=f"{mark}-{index}")
    return [boxes[index] for index in range(len(names))]


def _size(name: str, size: float, pixels: float) -> tuple[float, float]:
    font = FontProperties(family="sans-serif", size=size)
    width, _, _ = TextToPath().get_text_width_height_descent(name, font, ismath=False)
    return float(width) * pixels + 2 * pixels, 1.25 * size * pixels


def _candidates(point: Points, width: float, height: float, pixels: float) -> NDArray[np.float64]:
    """Return [candidates, 5]: boxes around a point, and how far each is away."""
    found, half = [], np.array([width, height]) / 2
    for distance, angle in itertools.product(_DISTANCES, _ANGLES):
        reach = np.array([np.cos(angle), np.sin(angle)])
        middle = point + reach * distance * pixels + reach * half
        found.append([*(middle - half), *(middle + half), distance * pixels])
    return np.array(found)


def _overlap(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each box the area that others cover of it, [boxes]."""
    if not len(others):
        return np.zeros(len(boxes))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides = np.maximum(high - low, 0.0)
    return np.asarray(sides.prod(axis=2).sum(axis=1))


def _write(axes: Axes, name: str, box: Bbox, point: Points, pixels: float) -> Text:
    inverse = axes.transData.inverted()
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    where: Any = inverse.transform(middle)
    text = axes.text(float(where[0]), float(where[1]), name, ha="center", va="center", zorder=6)
    text.set_bbox({"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4})
    text.set_in_layout(False)
    nearest = np.clip(point, [box.x0, box.y0], [box.x1, box.y1])
    if np.hypot(*(nearest - point)) > _LEADER * pixels:
        ends = inverse.transform(np.array([nearest, point]))
        axes.plot(ends[:, 0], ends[:, 1], color=GREY, linewidth=0.6, zorder=1.5)
    return text
