"""Curves that several figures draw: a sweep in the plane of two metrics, its chord, other sets of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from soups import pareto
from soups.errors import UserError
from soups.figures.spec import GREY, PALETTE, Curve, Mark, details_of, expert_name, samples_of, shorten
from soups.front import choose_metrics, compute_front
from soups.methods._weights import sums_to_one
from soups.pareto import Floats
from soups.results import Result

Estimates = Mapping[str, Mapping[str, float]]


def front_data(
    results: Sequence[Result], x: str | None, y: str | None, series: Mapping[str, Floats] | None = None, **options: Any
) -> dict[str, Any]:
    """Return the content of ``front.json`` for a figure."""
    x, y = choose_metrics(results, x, y)
    return compute_front(results, x, y, series=series, **options)


def interval_of(metrics: Estimates, x: str, y: str) -> tuple[float, float, float, float]:
    """Return the bounds of both coordinates."""
    return metrics[x]["low"], metrics[x]["high"], metrics[y]["low"], metrics[y]["high"]


def is_path(data: Mapping[str, Any]) -> bool:
    """Say whether the points lie on the line between two models, so that one coefficient orders them."""
    points = data["points"]
    is_mixed = all(sums_to_one(point["coefficients"].values()) for point in points)
    return len(data["checkpoints"]) == 2 and is_mixed and not any("modules" in point for point in points)


def soup_marks(data: Mapping[str, Any], results: Sequence[Result], labelled: Sequence[float] = ()) -> list[Mark]:
    """Return a mark per point of a front, with its samples; ``labelled`` are coefficients written beside marks."""
    by_key = {result.key: result for result in results}
    x, y, last = data["x"], data["y"], data["checkpoints"][-1]
    shares = np.array([point["coefficients"][last] for point in data["points"]])
    labels = {int(np.abs(shares - target).argmin()) for target in labelled} if len(data["checkpoints"]) == 2 else set()
    marks = []
    for index, point in enumerate(data["points"]):
        result = by_key[point["key"]]
        name = None if result.modules else result.alone
        marks.append(
            Mark(
                x=point["metrics"][x]["value"],
                y=point["metrics"][y]["value"],
                label=shorten(name) if name else f"{shares[index]:.2g}" if index in labels else "",
                is_named=name is not None,
                interval=interval_of(point["metrics"], x, y) if data["num_samples"] > 1 else None,
                shade=float(np.clip(shares[index], 0, 1)),
                is_faded=not point["nondominated"],
                details=details_of(result),
                samples=samples_of(result),
            )
        )
    return marks


def uncoloured(mark: Mark) -> Mark:
    """Return a mark with the colour of its curve and without a name."""
    return replace(mark, shade=None, label="", is_named=False)


def chord(data: Mapping[str, Any]) -> list[Curve]:
    """Return the straight lines between the models that were scored alone."""
    if data["straight_line"] is None:
        return []
    ends = [point for point in data["points"] if expert_name(point["coefficients"])]
    curves = []
    for i, first in enumerate(ends):
        for second in ends[i + 1 :]:
            marks = [_bare(point, data["x"], data["y"]) for point in (first, second)]
            name = "straight line"
            curves.append(Curve(name, marks, GREY, line="dashed", marker="none", in_legend=not curves))
    return curves


def _bare(point: Mapping[str, Any], x: str, y: str) -> Mark:
    return Mark(point["metrics"][x]["value"], point["metrics"][y]["value"])


def set_curves(data: Mapping[str, Any]) -> list[Curve]:
    """Return a curve per other set of models."""
    x, y = data["x"], data["y"]
    return [
        Curve(
            series["name"],
            [
                Mark(
                    point["metrics"][x]["value"],
                    point["metrics"][y]["value"],
                    interval=interval_of(point["metrics"], x, y),
                    is_faded=not point["nondominated"],
                    details={"Scores": {data["labels"][m]: f"{point['metrics'][m]['value']:.4g}" for m in (x, y)}},
                )
                for point in series["points"]
            ],
            PALETTE[index % len(PALETTE)],
            line="thin",
            marker="square",
            path=_through_best(series["points"], x, y),
        )
        for index, series in enumerate(data["series"])
    ]


def _through_best(points: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    """Return the line through the points that no other of the set dominates; the others would zigzag."""
    kept = [point["metrics"] for point in points if point["nondominated"]]
    return sorted((metrics[x]["value"], metrics[y]["value"]) for metrics in kept)


def trajectory_curves(trajectories: Mapping[str, Floats], first_colour: int = 3) -> list[Curve]:
    """Return a thin curve per training, in the order of its checkpoints."""
    return [
        Curve(
            name,
            [
                Mark(float(x), float(y), details={"Training": {"checkpoint": str(step + 1)}})
                for step, (x, y) in enumerate(scores.mean(axis=1))
            ],
            PALETTE[(first_colour + index) % len(PALETTE)],
            line="thin",
            marker="small",
        )
        for index, (name, scores) in enumerate(trajectories.items())
    ]


def fitted_path(marks: Sequence[Mark], shares: Sequence[float], fit: str) -> list[tuple[float, float]] | None:
    """Return the line of a sweep of two models: None for the one through the marks.

    ``smooth`` is a cubic in the coefficient for each metric, as noise of an evaluation is not part of a front;
    ``steps`` encloses what the points dominate.
    """
    points = np.array([[mark.x, mark.y] for mark in marks])
    if fit == "smooth" and len(marks) > 4:
        grid = np.linspace(min(shares), max(shares), 80)
        columns = [np.polynomial.Polynomial.fit(shares, points[:, k], 3)(grid) for k in (0, 1)]
        return [(float(x), float(y)) for x, y in zip(*columns, strict=True)]
    if fit == "steps":
        kept = points[pareto.nondominated(points)]
        kept = kept[np.argsort(kept[:, 0])]
        path = [tuple(kept[0])]
        for before, after in pairwise(kept):
            path += [(before[0], after[1]), tuple(after)]
        return [(float(x), float(y)) for x, y in path]
    return None


def init_curve(init: Mapping[str, float] | None, x: str, y: str) -> list[Curve]:
    """Return the mark of the initialisation, if its scores are known."""
    if init is None:
        return []
    missing = [metric for metric in (x, y) if metric not in init]
    if missing:
        raise UserError(f"the initialisation has no score {missing[0]!r}", where="--init", fix="score it alike")
    mark = Mark(init[x], init[y], label="init", is_named=True, details={"Scores": {m: f"{init[m]:.4g}" for m in init}})
    return [Curve("init", [mark], GREY, line="none", marker="cross")]
