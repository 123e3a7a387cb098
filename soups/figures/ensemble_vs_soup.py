"""A soup against the ensemble of its models' predictions, which costs one inference per model."""

from __future__ import annotations

from dataclasses import replace

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.curves import front_data
from soups.figures.front import caption, front_plane
from soups.figures.spec import Figure


def figure(inputs: Inputs) -> Figure:
    """Draw the first sweep and one series, each with its cost."""
    if not inputs.series:
        raise UserError("no ensemble to compare with", where="--compare", fix="give --compare ensemble=FILE")
    results = inputs.main()
    data = front_data(results, inputs.x, inputs.y, inputs.series, init=inputs.init)
    plane = front_plane(data, results, inputs)
    num_models = len(data["checkpoints"])
    cost = {series["name"]: f"{series['name']}, {num_models} inferences" for series in data["series"]}
    cost["soup"] = "soup, 1 inference"
    curves = [replace(curve, name=cost.get(curve.name, curve.name)) for curve in plane.curves]
    return Figure("Soup and ensemble", [replace(plane, curves=curves)], caption(data))
