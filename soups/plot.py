"""Figures as PNG and SVG files, drawn from plain data (`soups.figures.spec`)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas

from soups.figures.spec import GRADIENT, GREY, INK, PALE, Curve, Figure, Mark, Plane, Spider, Strip
from soups.labels import Label, place_labels
from soups.plot_panels import draw_spider, draw_strip, strip_size
from soups.state import write_bytes

SHADES = LinearSegmentedColormap.from_list("soup", list(GRADIENT))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "text.parse_math": False,  # names are people's: a dollar sign is a dollar sign
    "svg.hashsalt": "soups",  # equal data, equal file
    "svg.fonttype": "none",
}
MARKERS = {"dot": ("o", 52), "ring": ("o", 150), "cross": ("X", 64), "square": ("s", 40), "small": ("o", 14)}
WIDTHS = {"solid": 2.0, "dashed": 1.1, "thin": 1.2}
# Inches: the panel, and what is around it.
PANEL, SMALL_PANEL, SPIDER = (5.6, 4.1), (3.3, 2.6), (5.6, 4.6)
LEFT, RIGHT, BAR, TOP, BOTTOM, GAP, LINE = 0.85, 0.3, 0.85, 0.45, 0.62, 0.95, 0.175


def save_figure(figure: Figure, out_dir: Path, stem: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write the figure as ``stem.png`` and ``stem.svg``; return their paths."""
    paths = []
    for kind in kinds:
        write_bytes(out_dir / f"{stem}.{kind}", rendered(figure, kind))
        paths.append(out_dir / f"{stem}.{kind}")
    return paths


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the figure as the content of a ``png`` or ``svg`` file."""
    with mpl.rc_context(STYLE):
        buffer = BytesIO()
        draw(figure).savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Date": None})
    return buffer.getvalue()


def draw(figure: Figure) -> Canvas:
    """Draw every panel, the legend above, the gradient beside and the text below."""
    rows = -(-len(figure.panels) // figure.num_columns)
    size = _panel_size(figure)
    has_bar = any(isinstance(panel, Plane) and panel.bar for panel in figure.panels)
    titled = any(isinstance(panel, Plane) and panel.title for panel in figure.panels)
    legend = _legend_lines(figure)
    gap = GAP if not figure.shares_axes else 0.45
    num_lines = figure.caption.count("\n") + 1 if figure.caption else 0
    top = TOP + 0.22 * (legend - 1) + (0.24 if titled else 0.0)
    bottom = BOTTOM + LINE * num_lines
    width = LEFT + figure.num_columns * size[0] + (figure.num_columns - 1) * gap + (BAR if has_bar else RIGHT)
    height = top + rows * size[1] + (rows - 1) * gap + bottom
    canvas = Canvas(figsize=(width, height), dpi=160, facecolor="white")
    FigureCanvasAgg(canvas)
    planes: list[tuple[Axes, Plane]] = []
    for index, panel in enumerate(figure.panels):
        row, column = divmod(index, figure.num_columns)
        x = LEFT + column * (size[0] + gap)
        y = height - top - size[1] - row * (size[1] + gap)
        box = (x / width, y / height, size[0] / width, size[1] / height)
        if isinstance(panel, Spider):
            draw_spider(canvas, box, panel)
        elif isinstance(panel, Strip):
            draw_strip(canvas, box, panel)
        else:
            axes = canvas.add_axes(box)
            _draw_plane(axes, panel)
            planes.append((axes, panel))
    _share_axes(planes, figure)
    above = 0.3 if titled else 0.12  # panels' titles are between them and the legend
    _draw_legend(canvas, figure, (LEFT / width, 1 - (top - above) / height))
    if has_bar:
        name = next(panel.bar for panel in figure.panels if isinstance(panel, Plane) and panel.bar)
        _draw_bar(
            canvas, ((width - BAR + 0.2) / width, bottom / height, 0.12 / width, 1 - (top + bottom) / height), name
        )
    canvas.text(LEFT / width, 0.1 / height, figure.caption, fontsize=8.2, color=GREY, va="bottom", linespacing=1.4)
    for axes, plane in planes:
        _label(canvas, axes, plane)
    return canvas


def _panel_size(figure: Figure) -> tuple[float, float]:
    strips = [panel for panel in figure.panels if isinstance(panel, Strip)]
    if strips:
        return strip_size(strips[0])
    if any(isinstance(panel, Spider) for panel in figure.panels):
        return SPIDER
    return PANEL if len(figure.panels) == 1 else SMALL_PANEL if figure.shares_axes else (4.6, 3.7)


def _draw_plane(axes: Axes, plane: Plane) -> None:
    axes.set_axisbelow(True)
    axes.grid(color="#eef0f3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel(plane.x_label, fontsize=11, labelpad=6)
    axes.set_ylabel(plane.y_label, fontsize=11, labelpad=8)
    if plane.title:
        axes.set_title(plane.title, fontsize=10, color=INK, loc="left")
    for low, high in plane.shaded:
        axes.axvspan(low, high, color="#f1f2f5", zorder=0, linewidth=0)
    for order, curve in enumerate(plane.curves):  # the first is the most important: it is on top
        _draw_curve(axes, curve, 4 - 0.01 * order)
    axes.margins(0.09)
    axes.autoscale_view()


def _draw_curve(axes: Axes, curve: Curve, zorder: float) -> None:
    colours = [_colour(mark, curve) for mark in curve.marks]
    _draw_line(axes, curve, zorder)
    for mark, colour in zip(curve.marks, colours, strict=True):
        if mark.interval is not None and curve.marker not in ("small", "none"):
            x_low, x_high, y_low, y_high = mark.interval
            style: dict[str, Any] = {"colors": [colour], "linewidth": 1.1, "alpha": 0.38, "zorder": 2}
            axes.hlines(mark.y, x_low, x_high, **style)
            axes.vlines(mark.x, y_low, y_high, **style)
    if curve.marker == "none":
        return
    marker, size = MARKERS[curve.marker]
    for faded in (False, True):
        chosen = [p for p, mark in enumerate(curve.marks) if mark.is_faded == faded]
        if not chosen:
            continue
        x, y = [curve.marks[p].x for p in chosen], [curve.marks[p].y for p in chosen]
        shades = [colours[p] for p in chosen]
        hollow = faded or curve.marker == "ring"
        face: Any = ("none" if curve.marker == "ring" else "white") if hollow else shades
        axes.scatter(
            x,
            y,
            s=size * (0.65 if faded else 1.0),
            marker=marker,
            facecolors=face,
            edgecolors=shades if hollow else "white",
            linewidths=1.3 if hollow else 1.0 if size > 20 else 0.0,
            zorder=zorder + 1.5,
        )


def _draw_line(axes: Axes, curve: Curve, zorder: float) -> None:
    path = np.array(curve.path if curve.path is not None else [(mark.x, mark.y) for mark in curve.marks])
    if curve.line == "none" or len(path) < 2:
        return
    shades = [mark.shade for mark in curve.marks]
    if curve.path is None and curve.line == "solid" and shades and all(shade is not None for shade in shades):
        segments = np.stack([path[:-1], path[1:]], axis=1)
        at = np.array(shades, float)
        colours = SHADES((at[1:] + at[:-1]) / 2)
        axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=2.0, zorder=zorder))
        return
    dashes: dict[str, Any] = {"dashes": (5, 4)} if curve.line == "dashed" else {}
    axes.plot(*path.T, color=curve.colour, linewidth=WIDTHS[curve.line], zorder=min(zorder, 2.5), **dashes)


def _colour(mark: Mark, curve: Curve) -> Any:
    return curve.colour if mark.shade is None else SHADES(mark.shade)


def _share_axes(planes: Sequence[tuple[Axes, Plane]], figure: Figure) -> None:
    """Give small multiples the same limits, and labels on the outer ones only."""
    if not figure.shares_axes:
        return
    limits = [(*axes.get_xlim(), *axes.get_ylim()) for axes, _ in planes]
    x = min(limit[0] for limit in limits), max(limit[1] for limit in limits)
    y = min(limit[2] for limit in limits), max(limit[3] for limit in limits)
    for index, (axes, _) in enumerate(planes):
        axes.set_xlim(*x)
        axes.set_ylim(*y)
        if index + figure.num_columns < len(planes):
            axes.set_xlabel("")
            axes.set_xticklabels([])
        if index % figure.num_columns:
            axes.set_ylabel("")
            axes.set_yticklabels([])


def _legend_entries(figure: Figure) -> list[tuple[str, Any]]:
    """Return a name and a handle per curve or polygon, each name once."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for panel in figure.panels:
        if isinstance(panel, Spider):
            for polygon in panel.polygons:
                dash = "--" if polygon.is_dashed else "-"
                entries.setdefault(polygon.name, Line2D([], [], color=polygon.colour, linestyle=dash))
        if isinstance(panel, Plane):
            for curve in panel.curves:
                if curve.in_legend:
                    entries.setdefault(curve.name, _handle(curve))
                if curve.faded_name and any(mark.is_faded for mark in curve.marks):
                    entries.setdefault(curve.faded_name, _handle(curve, faded=True))
    return list(entries.items())


def _handle(curve: Curve, *, faded: bool = False) -> Any:
    from matplotlib.lines import Line2D

    marker, size = MARKERS.get(curve.marker, ("", 0))
    gradient = any(mark.shade is not None for mark in curve.marks)
    colour = SHADES(0.5) if gradient else curve.colour
    hollow = faded or curve.marker == "ring"
    style = "" if faded or curve.line == "none" else "--" if curve.line == "dashed" else "-"
    return Line2D(
        [],
        [],
        color=colour,
        linestyle=style,
        linewidth=WIDTHS.get(curve.line, 0.0),
        marker=marker,
        markersize=min(size, 64) ** 0.5,
        markerfacecolor="none" if hollow else colour,
        markeredgecolor=colour if hollow else "white",
    )


def _legend_lines(figure: Figure) -> int:
    num_entries = len(_legend_entries(figure))
    return max(1, -(-num_entries // _legend_columns(figure)))


def _legend_columns(figure: Figure) -> int:
    """Return the most columns that fit; entries run down the columns, each as wide as its longest name."""
    names = [name for name, _ in _legend_entries(figure)]
    room = _panel_size(figure)[0] * figure.num_columns + (figure.num_columns - 1) * GAP
    for columns in range(len(names), 1, -1):
        groups = [list(group) for group in np.array_split(np.array(names, dtype=object), columns)]
        if sum(0.62 + 0.072 * max(map(len, group)) for group in groups) <= room:
            return columns
    return 1


def _draw_legend(canvas: Canvas, figure: Figure, at: tuple[float, float]) -> None:
    entries = _legend_entries(figure)
    if len(entries) < 2:
        return
    canvas.legend(
        [handle for _, handle in entries],
        [name for name, _ in entries],
        loc="lower left",
        bbox_to_anchor=at,
        ncols=_legend_columns(figure),
        frameon=False,
        fontsize=9,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.0,
        borderpad=0.0,
    )


def _draw_bar(canvas: Canvas, box: tuple[float, float, float, float], name: str) -> None:
    bar = canvas.add_axes(box)
    bar.imshow(np.linspace(0, 1, 256)[:, None], cmap=SHADES, aspect="auto", origin="lower", extent=(0, 1, 0, 1))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    bar.tick_params(length=0, labelsize=9)
    for spine in bar.spines.values():
        spine.set_visible(False)
    bar.set_ylabel(name, fontsize=9, color=GREY, labelpad=5)
    bar.yaxis.set_label_position("right")


def _label(canvas: Canvas, axes: Axes, plane: Plane) -> None:
    """Write names first, then what finds room; a name that two curves share is written once."""
    labels: dict[tuple[str, float, float], Label] = {}
    for named in (True, False):
        for curve in plane.curves:
            for mark in curve.marks:
                if mark.label and mark.is_named == named:
                    colour = GREY if curve.marker == "cross" or not named else INK
                    weight = "bold" if named and curve.marker == "dot" else "normal"
                    label = Label(mark.label, (mark.x, mark.y), colour, weight, is_required=named)
                    labels.setdefault((mark.label if named else "", mark.x, mark.y), label)
    every = [(mark.x, mark.y) for curve in plane.curves if curve.marker != "none" for mark in curve.marks]
    taken = {(x, y) for name, x, y in labels if name}
    kept = [label for (name, x, y), label in labels.items() if name or (x, y) not in taken]
    if kept:
        place_labels(canvas, axes, kept, obstacles=np.array(every))
