"""The bound on what the best soup of two experts loses, for diagonal curvatures; needs no results."""

from __future__ import annotations

import numpy as np

from soups.figures import Inputs
from soups.figures.spec import PALETTE, Curve, Figure, Mark, Plane
from soups.theory import regret_bound

RATIOS = (1.0, 2.0, 10.0)


def figure(inputs: Inputs) -> Figure:
    """Draw the bound over the preference, for equal gaps of one."""
    grid = np.linspace(0, 1, 101)
    curves = [
        Curve(
            f"curvatures differ by {ratio:g}",
            [Mark(float(m), float(regret_bound(m, 1.0, 1.0, ratio))) for m in grid],
            PALETTE[index],
            marker="none",
        )
        for index, ratio in enumerate(RATIOS)
    ]
    plane = Plane("preference for the second reward", "regret, as a fraction of the gap", curves)
    return Figure("Largest regret of the best soup", [plane], "Rewarded soups, arXiv:2306.04488, quadratic rewards.")
