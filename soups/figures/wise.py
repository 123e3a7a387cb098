"""A sweep between experts with the paths to the initialisation or to another model as thin lines."""

from __future__ import annotations

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.curves import fitted_path, front_data, is_path, soup_marks, uncoloured
from soups.figures.front import front_plane
from soups.figures.spec import PALETTE, Curve, Figure, Plane


def figure(inputs: Inputs) -> Figure:
    """Draw the first sweep as a front, the others thin."""
    results = inputs.main()
    others = list(inputs.sweeps.items())[1:]
    if not others:
        raise UserError(
            "only one sweep", where="SWEEPS", fix="give the sweeps from each expert to the init too: NAME=DIR"
        )
    data = front_data(results, inputs.x, inputs.y)
    plane = front_plane(data, results, inputs)
    thin = []
    for index, (name, points) in enumerate(others):
        line = front_data(points, data["x"], data["y"])
        marks = soup_marks(line, points)
        shares = [point["coefficients"][line["checkpoints"][-1]] for point in line["points"]]
        path = fitted_path(marks, shares, inputs.fit) if is_path(line) else None
        thin.append(
            Curve(name, [uncoloured(mark) for mark in marks], PALETTE[index % len(PALETTE)], "thin", "small", path)
        )
    joined = Plane(plane.x_label, plane.y_label, [*plane.curves, *thin], bar=plane.bar)
    return Figure("Paths between experts and other models", [joined])
