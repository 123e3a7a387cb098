"""The panels that are no planes: spider maps, and strips of outputs."""

from __future__ import annotations

import base64
import binascii
import textwrap
from io import BytesIO

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.patheffects import withStroke

from soups.figures.spec import GREY, INK, PALE, Spider, Strip, is_picture, shown

ABOVE = 0.2  # a spoke this near to the vertical has its label above or below
OUTSIDE = 1.1  # where labels are, in radii
LONG_LABEL, LETTER_INCHES = 12, 0.092  # bold, at the size of labels
RINGS = (1 / 3, 2 / 3, 1.0)
CELL_CHARACTERS, ROW_CHARACTERS = 20, 24  # in a column of a strip, in its first column
CELL_INCHES, ROW_INCHES, LINE_INCHES, PICTURE_INCHES = 1.55, 1.7, 0.155, 1.3
NUMBER_CHARACTERS, NUMBER_INCHES = 3, 0.4  # labels of rows that are only counted need no room
MAX_LINES = 8

Box = tuple[float, float, float, float]


def draw_spider(canvas: Canvas, box: Box, spider: Spider) -> None:
    """Draw the polygons; rings are at thirds, with their value on every spoke."""
    width, height = canvas.get_size_inches()
    angles = np.pi / 2 - np.arange(len(spider.spokes)) * 2 * np.pi / len(spider.spokes)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    labels = [_in_lines(spoke.label) for spoke in spider.spokes]
    side = min(box[2] * width, box[3] * height) * 0.86
    for ray, label in zip(rays, labels, strict=True):  # those beside the map must fit beside it
        if abs(ray[0]) >= ABOVE:
            room = box[2] * width / 2 - max(map(len, label.split("\n"))) * LETTER_INCHES
            side = min(side, max(2 * room / (OUTSIDE * abs(ray[0])), side / 2))
    lower = (1 + rays[:, 1].min()) / 2  # an odd number of spokes leaves room below: the middle is that of the map
    x = box[0] + box[2] / 2 - side / width / 2
    y = box[1] + box[3] / 2 - side / height * (1 + lower) / 2
    axes = canvas.add_axes((x, y, side / width, side / height))
    axes.set_axis_off()
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    for ring in RINGS:
        axes.plot(*_closed(rays * ring).T, color=PALE, linewidth=0.9, zorder=1)
    for ray, spoke, label in zip(rays, spider.spokes, labels, strict=True):
        axes.plot([0, ray[0]], [0, ray[1]], color=PALE, linewidth=0.9, zorder=1)
        side_of = "center" if abs(ray[0]) < ABOVE else "left" if ray[0] > 0 else "right"
        x, y = ray * OUTSIDE
        level = "center" if side_of != "center" else "bottom" if ray[1] > 0 else "top"
        axes.text(x, y, label, ha=side_of, va=level, fontsize=10.5, color=INK, weight="bold")
        for ring in RINGS:
            value = spoke.worst + ring * (spoke.best - spoke.worst)
            x, y = ray * (ring - 0.05) + np.array([abs(ray[1]), -abs(ray[0])]) * 0.03
            away = "right" if side_of == "left" and ring == RINGS[-1] else "left"  # from the label
            text = axes.text(x, y, shown(value), fontsize=7, color=GREY, ha=away, va="center", zorder=6)
            text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])
    for polygon in spider.polygons:
        corners = _closed(rays * relative(spider, polygon.values)[:, None])
        axes.plot(
            *corners.T,
            color=polygon.colour,
            linewidth=1.8,
            linestyle="--" if polygon.is_dashed else "-",
            marker="o",
            markersize=4,
            zorder=4,
            clip_on=False,
        )
        axes.fill(*corners.T, color=polygon.colour, alpha=0.06, zorder=3)
    if spider.title:
        axes.set_title(spider.title, fontsize=10)


def _in_lines(label: str) -> str:
    """Break a label that is long behind its last colon, slash or space."""
    cut = max(label.rfind(mark) for mark in ":/ ") + 1
    return label if len(label) <= LONG_LABEL or not 0 < cut < len(label) else f"{label[:cut].rstrip()}\n{label[cut:]}"


def relative(spider: Spider, values: object) -> np.ndarray:
    """Return values as fractions of their spokes; one where all models are equal."""
    worst = np.array([spoke.worst for spoke in spider.spokes])
    span = np.array([spoke.best for spoke in spider.spokes]) - worst
    return np.where(span > 0, (np.asarray(values, float) - worst) / np.where(span > 0, span, 1.0), 1.0)


def _closed(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, points[:1]])


def strip_size(strip: Strip) -> tuple[float, float]:
    """Return the size of a strip in inches."""
    heights = [_row_height(strip, index) for index in range(len(strip.rows))]
    return _label_inches(strip) + CELL_INCHES * len(strip.columns), 0.35 + sum(heights)


def _label_inches(strip: Strip) -> float:
    return NUMBER_INCHES if all(len(label) <= NUMBER_CHARACTERS for label in strip.rows) else ROW_INCHES


def draw_strip(canvas: Canvas, box: Box, strip: Strip) -> None:
    """Draw the table of outputs."""
    width, height = strip_size(strip)
    start = _label_inches(strip)
    axes = canvas.add_axes(box)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    for column, name in enumerate(strip.columns):
        colour = GREY if column < strip.num_given else INK
        axes.text(start + column * CELL_INCHES, 0.12, name, fontsize=9, weight="bold", va="center", color=colour)
    top = 0.35
    for index, label in enumerate(strip.rows):
        axes.plot([0, width], [top, top], color=PALE, linewidth=0.8)
        axes.text(0, top + 0.08, _wrapped(label, ROW_CHARACTERS), fontsize=8, color=GREY, va="top", linespacing=1.3)
        for column, cell in enumerate(strip.cells[index]):
            left = start + column * CELL_INCHES
            colour = GREY if column < strip.num_given else INK
            picture = picture_of(cell)
            if picture is None:
                text = "(picture)" if is_picture(cell) else _wrapped(cell, CELL_CHARACTERS)
                axes.text(left, top + 0.08, text, fontsize=8, va="top", linespacing=1.3, color=colour)
                continue
            ratio = picture.shape[1] / picture.shape[0]
            wide = min(PICTURE_INCHES, PICTURE_INCHES * ratio)
            extent = (left, left + wide, top + 0.06 + wide / ratio, top + 0.06)
            axes.imshow(picture, extent=extent, aspect="auto", interpolation="nearest")
        top += _row_height(strip, index)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _row_height(strip: Strip, index: int) -> float:
    cells = strip.cells[index]
    lines = [_wrapped(cell, CELL_CHARACTERS).count("\n") + 1 for cell in cells if not is_picture(cell)]
    lines.append(_wrapped(strip.rows[index], ROW_CHARACTERS).count("\n") + 1)
    has_picture = any(is_picture(cell) for cell in cells)
    return max(max(lines) * LINE_INCHES + 0.18, PICTURE_INCHES + 0.15 if has_picture else 0.0)


def _wrapped(text: str, width: int) -> str:
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""]]
    return "\n".join(lines[:MAX_LINES] + (["…"] if len(lines) > MAX_LINES else []))


def picture_of(cell: str) -> np.ndarray | None:
    """Return the pixels of a ``data:image`` URI, or None if it is no picture that can be read."""
    head, _, data = cell.partition(";base64,")
    if not head.startswith("data:image/"):
        return None
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(BytesIO(base64.b64decode(data, validate=True))).convert("RGB"))
    except (binascii.Error, UnidentifiedImageError, OSError):
        return None
