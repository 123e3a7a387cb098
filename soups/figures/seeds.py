"""Fronts between several trainings of the same two rewards, in one plane: how much a seed moves."""

from __future__ import annotations

from soups.figures import Inputs
from soups.figures.curves import front_data, is_path, soup_marks, uncoloured
from soups.figures.spec import PALETTE, Curve, Figure, Plane


def figure(inputs: Inputs) -> Figure:
    """Draw every sweep in a colour of its own."""
    first = front_data(inputs.main(), inputs.x, inputs.y)
    curves = []
    for index, (name, results) in enumerate(inputs.sweeps.items()):
        data = front_data(results, first["x"], first["y"])
        line = "solid" if is_path(data) else "none"
        marks = [uncoloured(mark) for mark in soup_marks(data, results)]
        curves.append(Curve(name, marks, PALETTE[index % len(PALETTE)], line))
    plane = Plane(first["labels"][first["x"]], first["labels"][first["y"]], curves)
    return Figure(f"{len(curves)} fronts", [plane])
