"""A path that continues beyond both models: in the plane of two metrics, and metric by metric."""

from __future__ import annotations

from dataclasses import replace

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.curves import front_data
from soups.figures.front import front_plane
from soups.figures.metrics_vs_lambda import metrics_plane
from soups.figures.spec import Curve, Figure, Mark, Plane, share_of


def figure(inputs: Inputs) -> Figure:
    """Draw the first sweep, hollow where a coefficient is outside [0, 1]."""
    results = inputs.main()
    shares = [share_of(result) for result in results]
    if min(shares) >= 0 and max(shares) <= 1:
        raise UserError("no point lies beyond a model", where="SWEEPS", fix="sweep with --range -0.5,1.5 --extrapolate")
    data = front_data(results, inputs.x, inputs.y)
    plane = front_plane(data, results, inputs)
    order = [point["coefficients"][data["checkpoints"][-1]] for point in data["points"]]
    curves = [_hollow(curve, order) if curve.name == "soup" else curve for curve in plane.curves]
    beyond = [(min(0.0, *shares), 0.0), (1.0, max(1.0, *shares))]
    shaded = [(low, high) for low, high in beyond if low < high]
    panels = [_without_knee(replace(plane, curves=curves)), metrics_plane(inputs.plain(), inputs.init, shaded)]
    return Figure("Beyond the models", panels, "Hollow and shaded: a coefficient outside [0, 1].", num_columns=2)


def _hollow(curve: Curve, shares: list[float]) -> Curve:
    marks: list[Mark] = []
    for mark, share in zip(curve.marks, shares, strict=True):
        marks.append(replace(mark, is_faded=not 0 <= share <= 1))
    return replace(curve, marks=marks, faded_name="beyond the models")


def _without_knee(plane: Plane) -> Plane:
    return replace(plane, curves=[curve for curve in plane.curves if curve.name != "knee"])
