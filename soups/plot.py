"""The figure of a front, as PNG and SVG, from the data of ``front.json`` alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from soups.labels import Label, place_labels
from soups.state import write_bytes

# From all the weight on the first model to all on the last: the gradient of the demo of rewarded soups.
GRADIENT = LinearSegmentedColormap.from_list("soup", ["#fa7659", "#6dafd7"])
INK, GREY, PALE = "#22272e", "#6b7280", "#d9dde3"
LABELLED = (0.25, 0.5, 0.75)  # coefficients written next to their markers, where there is room
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


def save_front(front: Mapping[str, Any], out_dir: Path) -> list[Path]:
    """Write ``front.png`` and ``front.svg``; return their paths."""
    with mpl.rc_context(STYLE):
        figure = draw_front(front)
        paths = []
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_bytes(out_dir / f"front.{kind}", buffer.getvalue())
            paths.append(out_dir / f"front.{kind}")
    return paths


def draw_front(front: Mapping[str, Any]) -> Figure:
    """Draw the soups, their intervals, the straight line between experts, the knee and the initialisation."""
    figure = Figure(figsize=(7.6, 5.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.22, 0.74, 0.705))
    means, low, high = (_plane(front, bound) for bound in ("value", "low", "high"))
    shade = position(front)
    kept = np.array([point["nondominated"] for point in front["points"]])

    axes.set_axisbelow(True)
    axes.grid(color="#eef0f3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    axes.set_xlabel(front["x"], fontsize=11, labelpad=6)
    axes.set_ylabel(front["y"], fontsize=11, labelpad=8)
    _draw_lines(axes, front, means, shade)
    for p in range(len(means)):
        colour = GRADIENT(shade[p])
        axes.hlines(means[p, 1], low[p, 0], high[p, 0], colors=[colour], linewidth=1.1, alpha=0.38, zorder=2)
        axes.vlines(means[p, 0], low[p, 1], high[p, 1], colors=[colour], linewidth=1.1, alpha=0.38, zorder=2)
    axes.scatter(
        *means[kept].T,
        c=GRADIENT(shade[kept]),
        s=52,
        edgecolors="white",
        linewidths=1.0,
        zorder=5,
        label="soup",
    )
    if not kept.all():
        axes.scatter(
            *means[~kept].T,
            facecolors="white",
            edgecolors=[GRADIENT(value) for value in shade[~kept]],
            s=34,
            linewidths=1.4,
            zorder=4,
            label="soup, dominated",
        )
    knee = means[front["knee"]["index"]]
    axes.scatter(*knee, s=150, facecolors="none", edgecolors=INK, linewidths=1.2, zorder=6, label="knee")
    if front["init"]:
        axes.scatter(*_init_xy(front), marker="X", s=64, c=GREY, edgecolors="white", zorder=5, label="init")
    axes.margins(0.09)
    _draw_legend(figure, axes, front)
    _draw_gradient(figure, front)
    figure.text(0.11, 0.022, caption(front), fontsize=8.2, color=GREY, va="bottom", linespacing=1.5)
    _draw_labels(figure, axes, front, means, shade)
    return figure


def caption(front: Mapping[str, Any]) -> str:
    """Return the text under the figure: hypervolumes with intervals, reference point, samples."""
    reference = ", ".join(f"{value:.4g}" for value in front["reference"])
    text = f"Hypervolume {spell(front['hypervolume'])} above ({reference})."
    line = front["straight_line"]
    if line:
        text += f"\nStraight line {spell(line['hypervolume'])}; gain {spell(line['gain'])}."
    level = front["bootstrap"]["level"]
    return f"{text}\n{level:.0%} bootstrap intervals over {front['num_samples']} samples."


def spell(estimate: Mapping[str, float]) -> str:
    """Return an estimate and its interval as text."""
    return f"{estimate['value']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def position(front: Mapping[str, Any]) -> np.ndarray:
    """Return the place (P,) of each point in the gradient: its coefficient of the last checkpoint."""
    last = front["checkpoints"][-1]
    return np.clip([point["coefficients"][last] for point in front["points"]], 0.0, 1.0)


def _plane(front: Mapping[str, Any], bound: str) -> np.ndarray:
    axes = (front["x"], front["y"])
    return np.array([[point["metrics"][metric][bound] for metric in axes] for point in front["points"]])


def _xy(mean: np.ndarray) -> tuple[float, float]:
    return float(mean[0]), float(mean[1])


def _init_xy(front: Mapping[str, Any]) -> tuple[float, float]:
    return front["init"][front["x"]], front["init"][front["y"]]


def _experts(front: Mapping[str, Any]) -> dict[str, int]:
    """Return the index of the point of each checkpoint alone, where it was evaluated."""
    return {
        name: p
        for p, point in enumerate(front["points"])
        for name, weight in point["coefficients"].items()
        if weight == 1 and sum(map(abs, point["coefficients"].values())) == 1
    }


def _draw_lines(axes: Axes, front: Mapping[str, Any], means: np.ndarray, shade: np.ndarray) -> None:
    ends = list(_experts(front).values())
    for index, first in enumerate(ends):
        for second in ends[index + 1 :]:
            pair = means[[first, second]]
            label = "straight line" if index == 0 and second == ends[1] else None
            axes.plot(*pair.T, color=GREY, linewidth=1.1, dashes=(5, 4), zorder=1, label=label)
    if len(front["checkpoints"]) == 2 and len(means) > 1:
        middle = (shade[1:] + shade[:-1]) / 2
        segments = np.stack([means[:-1], means[1:]], axis=1)
        axes.add_collection(LineCollection(list(segments), colors=GRADIENT(middle), linewidths=2.0, zorder=3))


def _draw_legend(figure: Figure, axes: Axes, front: Mapping[str, Any]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.1, 0.92),
        ncols=len(labels),
        frameon=False,
        fontsize=9,
        handletextpad=0.4,
        columnspacing=1.6,
    )


def _draw_gradient(figure: Figure, front: Mapping[str, Any]) -> None:
    bar = figure.add_axes((0.9, 0.22, 0.017, 0.705))
    bar.imshow(np.linspace(0, 1, 256)[:, None], cmap=GRADIENT, aspect="auto", origin="lower", extent=(0, 1, 0, 1))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    bar.tick_params(length=0, labelsize=9)
    for spine in bar.spines.values():
        spine.set_visible(False)
    name = shorten(front["checkpoints"][-1])
    bar.set_ylabel(f"coefficient of {name}", fontsize=9, color=GREY, labelpad=5)
    bar.yaxis.set_label_position("right")


def shorten(name: str, num_characters: int = 28) -> str:
    """Return a name that fits in a figure."""
    return name if len(name) <= num_characters else name[: num_characters - 1] + "…"


def _draw_labels(figure: Figure, axes: Axes, front: Mapping[str, Any], means: np.ndarray, shade: np.ndarray) -> None:
    labels = [
        Label(shorten(name), _xy(means[p]), weight="bold", color=INK, is_required=True)
        for name, p in _experts(front).items()
    ]
    knee = front["knee"]["index"]
    last = front["checkpoints"][-1]
    value = front["points"][knee]["coefficients"][last]
    if knee not in _experts(front).values():
        labels.append(Label(f"knee, {value:.2g}", _xy(means[knee]), color=INK, is_required=True))
    if front["init"]:
        labels.append(Label("init", _init_xy(front), color=GREY, is_required=True))
    if len(front["checkpoints"]) == 2:
        for target in LABELLED:
            nearest = int(np.abs(shade - target).argmin())
            if nearest not in (knee, *_experts(front).values()):
                text = f"{front['points'][nearest]['coefficients'][last]:.2g}"
                labels.append(Label(text, _xy(means[nearest]), color=GREY))
    place_labels(figure, axes, labels, obstacles=means)
