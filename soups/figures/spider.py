"""Every metric at once: the experts, the uniform soup, the initialisation and other models as polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.spec import (
    GREY,
    INK,
    PALETTE,
    Figure,
    Polygon,
    Spider,
    Spoke,
    details_of,
    samples_of,
    shorten,
    shown,
)
from soups.metric_names import written
from soups.results import Result


def figure(inputs: Inputs) -> Figure:
    """Draw the experts and the uniform soup of the first sweep; single points of further sweeps; the init."""
    results = inputs.plain()
    metrics = list(results[0].metrics)
    if len(metrics) < 3:
        raise UserError(f"a spider map needs three metrics; there are: {', '.join(metrics)}", fix="score more")
    polygons = []
    if inputs.init is not None:
        missing = [metric for metric in metrics if metric not in inputs.init]
        if missing:
            raise UserError(f"the initialisation has no score {missing[0]!r}", where="--init", fix="score it alike")
        values = [inputs.init[metric] for metric in metrics]
        details = {"Scores": {written(m): shown(value) for m, value in zip(metrics, values, strict=True)}}
        polygons.append(Polygon("init", values, GREY, is_dashed=True, details=details))
    polygons += [_polygon(name, result, metrics, colour) for name, result, colour in _chosen(results)]
    others = list(inputs.sweeps.items())[1:]
    for index, (name, points) in enumerate(others):
        if len(points) != 1:
            raise UserError(
                f"{name!r} has {len(points)} points, a polygon is one", where="SWEEPS", fix="sweep it alone"
            )
        polygons.append(_polygon(name, points[0], metrics, PALETTE[-1 - index % len(PALETTE)]))
    values = np.array([polygon.values for polygon in polygons])
    spokes = [
        Spoke(written(m), float(low), float(high))
        for m, low, high in zip(metrics, values.min(axis=0), values.max(axis=0), strict=True)
    ]
    caption = "Centre: the worst value of these models; rim: the best; rings at thirds."
    return Figure("Models by metric", [Spider(spokes, polygons)], caption)


def _chosen(results: Sequence[Result]) -> list[tuple[str, Result, str]]:
    """Return the experts and, last, so that it is on top, the uniform soup."""
    chosen = []
    for result in results:
        if result.alone is not None:
            chosen.append((shorten(result.alone), result, PALETTE[len(chosen) % len(PALETTE)]))
    uniform = next((result for result in results if _is_uniform(result.coefficients)), None)
    return [*chosen, ("uniform soup", uniform, INK)] if uniform is not None else chosen


def _is_uniform(coefficients: Mapping[str, float]) -> bool:
    share = 1 / len(coefficients)
    return len(coefficients) > 1 and all(abs(weight - share) < 1e-6 for weight in coefficients.values())


def _polygon(name: str, result: Result, metrics: Sequence[str], colour: str) -> Polygon:
    values = [result.metrics[metric] for metric in metrics]
    return Polygon(name, values, colour, details=details_of(result), samples=samples_of(result))
