"""Small multiples: one front per sweep, with the same axes, such as pairs of hyper-parameters."""

from __future__ import annotations

from dataclasses import replace

from soups.figures import Inputs
from soups.figures.curves import front_data
from soups.figures.front import front_plane
from soups.figures.spec import Figure


def figure(inputs: Inputs) -> Figure:
    """Draw every sweep in a panel of its own, in rows of ``num_columns``."""
    first = front_data(inputs.main(), inputs.x, inputs.y)
    panels = []
    for name, results in inputs.sweeps.items():
        data = front_data(results, first["x"], first["y"])
        panels.append(replace(front_plane(data, results, inputs, name), bar="coefficient of the last model"))
    columns = min(inputs.num_columns, len(panels))
    return Figure(f"{len(panels)} fronts", panels, num_columns=columns, shares_axes=True)
