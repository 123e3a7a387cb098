"""Every metric along a path of two models, with the straight lines between the ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from soups import pareto
from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.spec import PALETTE, Curve, Figure, Mark, Plane, details_of, samples_of, share_of, shorten
from soups.metric_names import written
from soups.results import Result


def figure(inputs: Inputs) -> Figure:
    """Draw the metrics of the first sweep, each relative to its value at the init (or at the first model)."""
    plane = metrics_plane(inputs.plain(), inputs.init)
    has_ends = any(curve.line == "dashed" for curve in plane.curves)
    return Figure("Metrics along the path", [plane], "Dashed: the straight line between the two models." * has_ends)


def metrics_plane(
    results: Sequence[Result], init: Mapping[str, float] | None, shaded: Sequence[tuple[float, float]] = ()
) -> Plane:
    """Return the panel; coefficients are those of the last model.

    Metrics are divided by their start, or, where one of these is not positive, measured from it in units of the range.
    """
    results = sorted(results, key=share_of)
    names = list(results[0].coefficients)
    if len(names) != 2 or len(results) < 2:
        raise UserError("this figure needs a sweep of two models", where="SWEEPS", fix="sweep at least 2 points")
    curves = []
    shares = [share_of(result) for result in results]
    first = results[int(np.abs(shares).argmin())]
    starts = {metric: value if init is None else init.get(metric, value) for metric, value in first.metrics.items()}
    is_ratio = all(start > 0 for start in starts.values())
    for index, metric in enumerate(results[0].metrics):
        scores = np.array([result.scores[metric] for result in results])[:, :, None]
        origin = 0.0 if is_ratio else starts[metric]
        unit = starts[metric] if is_ratio else float(np.ptp(scores.mean(axis=1))) or 1.0
        low, high = pareto.interval((pareto.resampled_means(scores, 200, 0)[:, :, 0] - origin) / unit)
        has_width = scores.shape[1] > 1
        marks = [
            Mark(
                share,
                (result.metrics[metric] - origin) / unit,
                interval=(share, share, float(low[p]), float(high[p])) if has_width else None,
                details=details_of(result),
                samples=samples_of(result),
            )
            for p, (share, result) in enumerate(zip(shares, results, strict=True))
        ]
        colour = PALETTE[index % len(PALETTE)]
        curves.append(Curve(written(metric), marks, colour))
        ends = [mark for mark, result in zip(marks, results, strict=True) if result.alone is not None]
        if len(ends) == 2:
            curves.append(Curve(written(metric), ends, colour, "dashed", "none", in_legend=False))
    is_model = first.alone == names[0]
    unit_name = "the initialisation" if init is not None else shorten(names[0]) if is_model else "the first point"
    scale = f"metric, relative to {unit_name}" if is_ratio else f"change from {unit_name}, in units of the range"
    return Plane(f"coefficient of {shorten(names[1])}", scale, curves, shaded=shaded)
