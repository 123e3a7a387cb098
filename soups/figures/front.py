"""The soups in the plane of two metrics, with the straight line, the knee, other sets of models and trainings.

A front of more metrics is drawn as the planes of all pairs; hollow is what is dominated in all metrics together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from soups.figures import Inputs
from soups.figures.curves import (
    chord,
    fitted_path,
    front_data,
    init_curve,
    is_path,
    set_curves,
    soup_marks,
    trajectory_curves,
)
from soups.figures.spec import INK, Curve, Figure, Mark, Plane, expert_name, shorten, spell
from soups.results import Result

LABELLED = (0.25, 0.5, 0.75)  # coefficients written beside their marks, where there is room


def figure(inputs: Inputs) -> Figure:
    """Draw the first sweep with the series and the trajectories."""
    results = inputs.main()
    data = front_data(results, inputs.x, inputs.y, inputs.series, init=inputs.init)
    return front_figure(data, results, inputs)


def front_figure(data: Mapping[str, Any], results: Sequence[Result], inputs: Inputs | None = None) -> Figure:
    """Draw the content of ``front.json``; ``results`` give the samples."""
    inputs = inputs or Inputs()
    labels = [data["labels"][metric] for metric in (data["x"], data["y"], *data.get("more", ()))]
    title = f"Front of {', '.join(labels[:-1])} and {labels[-1]}"
    pairs = combinations((data["x"], data["y"], *data.get("more", ())), 2)
    planes = [front_plane({**data, "x": x, "y": y}, results, inputs) for x, y in pairs]
    return Figure(title, planes, caption(data), num_columns=min(len(planes), inputs.num_columns))


def front_plane(data: Mapping[str, Any], results: Sequence[Result], inputs: Inputs, title: str = "") -> Plane:
    """Return the panel of a front."""
    x, y, last = data["x"], data["y"], data["checkpoints"][-1]
    marks = soup_marks(data, results, () if title else LABELLED)  # a small panel has room for names only
    shares = [point["coefficients"][last] for point in data["points"]]
    of_two = is_path(data)
    path = fitted_path(marks, shares, inputs.fit) if of_two else None
    line = "solid" if of_two and inputs.fit != "none" else "none"
    knee = data["knee"]["index"]
    share = f", {shares[knee]:.2g}" if of_two else ""
    label = "" if marks[knee].is_named else f"knee{share}"
    curves = [
        Curve("soup", marks, INK, line, path=path, faded_name="dominated soup"),
        *set_curves(data),
        *trajectory_curves(inputs.trajectories),
        *chord(data),
        Curve("knee", [Mark(marks[knee].x, marks[knee].y, label, bool(label))], INK, line="none", marker="ring"),
        *init_curve(data["init"], x, y),
    ]
    labels = data["labels"]
    bar = f"coefficient of {shorten(last)}" if of_two else f"coefficient of {shorten(last)}, of all models"
    return Plane(labels[x], labels[y], curves, title, bar=bar)


def caption(data: Mapping[str, Any]) -> str:
    """Return the text under the figure: where the line of the soups lies, hypervolume with interval, samples.

    The gain in hypervolume stands there only where the area is not known: it also counts how evenly the points are
    spread, so that a line above the chord may come with a gain below 0.
    """
    reference = ", ".join(f"{value:.4g}" for value in data["reference"])
    text = f"Hypervolume {spell(data['hypervolume'])} above ({reference})."
    line = data["straight_line"]
    if line and line["area"]:
        text = f"{_area_lines(data)}\n{text}"
    elif line:
        text += f"\nStraight line, as many points: {spell(line['hypervolume'])}; gain {spell(line['gain'])}."
    if data["num_samples"] == 1:
        return f"{text}\nMeans only: without scores per sample there are no intervals."
    level = data["bootstrap"]["level"]
    return f"{text}\n{level:.0%} bootstrap intervals over {data['num_samples']} samples."


def _area_lines(data: Mapping[str, Any]) -> str:
    line, weights = data["straight_line"], [point["coefficients"] for point in data["points"]]
    inside = [own for own in weights if min(own.values()) >= 0 and not expert_name(own)]  # beyond the ends is no line
    low, high = line["area"]["low"], line["area"]["high"]
    place = "lies above" if low > 0 else "lies below" if high < 0 else "is not shown to lie above or below"
    return (
        f"The line through the soups {place} the straight line; "
        f"{line['num_below']} of {len(inside)} mixtures are below.\n"
        f"Area between the two: {spell(line['area'])} of the box of their ends."
    )
