"""Text next to markers without overlaps: each label takes the free place nearest to its marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

RADII_PT = (11.0, 15.0, 20.0, 27.0, 36.0)
ANGLES = np.arange(24) * (2 * np.pi / 24)
OUTWARD = np.array([1.0, 1.0]) / np.sqrt(2)  # both rewards are maximised: outside the front is up and right
DOT_PX = 4.0
OVERLAP = 1e6  # the cost of covering a marker or another label: never worth it if any place is free
MARKER_PT = 6.0  # half the side of the square kept free around a marker


@dataclass(frozen=True)
class Label:
    """A text and the data point it belongs to; unless required, it is dropped when it finds no free place."""

    text: str
    xy: tuple[float, float]
    color: str
    weight: str = "normal"
    is_required: bool = False


def place_labels(figure: Figure, axes: Axes, labels: Sequence[Label], obstacles: np.ndarray) -> None:
    """Draw the labels, the first ones first; call it when limits and everything else are final.

    Args:
        figure: the figure, drawn with Agg.
        axes: where the markers are.
        labels: what to write.
        obstacles: the data coordinates (P, 2) of all markers.
    """
    figure.draw_without_rendering()
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    pixels = figure.dpi / 72
    half = MARKER_PT * pixels
    every = np.concatenate([obstacles, *[np.array([label.xy]) for label in labels]])
    taken = [Bbox([centre - half, centre + half]) for centre in axes.transData.transform(every)]
    dots = _line_dots(axes)
    for label in labels:
        centre = axes.transData.transform(label.xy)
        text = axes.annotate(label.text, label.xy, (0, 0), textcoords="offset points", **_style(label))
        size = np.array(text.get_window_extent(renderer).size)
        places = [_place(centre, size, radius * pixels, angle) for radius in RADII_PT for angle in ANGLES]
        costs = [_cost(box, taken, dots, axes.get_window_extent(), centre) for box in places]
        best = int(np.argmin(costs))
        if costs[best] >= OVERLAP and not label.is_required:
            text.remove()
            continue
        middle = (np.array(places[best].min) + np.array(places[best].max)) / 2
        text.set_position(tuple((middle - centre) / pixels))
        taken.append(places[best].padded(2 * pixels))


def _style(label: Label) -> dict[str, Any]:
    return {
        "color": label.color,
        "weight": label.weight,
        "ha": "center",
        "va": "center",
        "fontsize": 9.5,
        "zorder": 8,
    }


def _place(centre: np.ndarray, size: np.ndarray, radius: float, angle: float) -> Bbox:
    direction = np.array([np.cos(angle), np.sin(angle)])
    middle = centre + direction * (radius + size / 2)
    return Bbox([middle - size / 2, middle + size / 2])


def _line_dots(axes: Axes) -> np.ndarray:
    """Return pixels (D, 2) along every line of the axes; covering them is ugly but allowed."""
    paths = [line.get_xydata() for line in axes.get_lines() if isinstance(line, Line2D)]
    for collection in axes.collections:
        if isinstance(collection, LineCollection):
            paths += [path.vertices for path in collection.get_paths()]
    dots = [np.empty((0, 2))]
    for path in paths:
        ends = axes.transData.transform(np.asarray(path))
        for start, end in pairwise(ends):
            num_dots = 2 + int(np.hypot(*(end - start)) / DOT_PX)
            dots.append(start + (end - start) * np.linspace(0, 1, num_dots)[:, None])
    return np.concatenate(dots)


def _cost(box: Bbox, taken: Sequence[Bbox], dots: np.ndarray, frame: Bbox, centre: np.ndarray) -> float:
    hits = sum(box.overlaps(other) for other in taken)
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    low, high = np.array(box.min), np.array(box.max)
    covered = int(((dots > low - 2) & (dots < high + 2)).all(axis=1).sum())
    offset = (low + high) / 2 - centre
    distance = float(np.hypot(*offset))
    inward = 1 - float(offset @ OUTWARD) / max(distance, 1.0)
    return OVERLAP * (hits + (not inside)) + 6.0 * covered + distance + 12.0 * inward
