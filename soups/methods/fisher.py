"""Fisher merging: each entry weighted by how much it matters to its model (Matena & Raffel 2022, arXiv:2111.09832)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from soups.errors import UserError
from soups.methods._task_vectors import used
from soups.methods._weights import check_convex, one_hot

BASE = "none"
ELEMENTWISE = True
EXTRA = "Fisher diagonal"


def check(weights: Sequence[float], *, floor: float) -> None:
    """Require coefficients in [0, 1] that sum to one and a positive floor."""
    check_convex(weights, extrapolate=False)
    if floor <= 0:
        raise UserError(f"floor is {floor:g}", fix="give a positive number")


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    fishers: Sequence[Tensor | None],
    *,
    floor: float = 1e-6,
) -> Tensor:
    """Return ``sum_i w_i F_i models[i] / sum_i w_i F_i``; a Fisher value below ``floor`` counts as ``floor``."""
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    total, divisor = models[0].new_zeros(models[0].shape), models[0].new_zeros(models[0].shape)
    for index in used(weights):
        fisher = fishers[index]
        if fisher is None or fisher.shape != models[index].shape:
            raise UserError("a parameter has no Fisher diagonal of its shape", fix="store one per parameter")
        importance = fisher.to(total).clamp(min=floor) * weights[index]  # widened first: coefficients keep their digits
        total += importance * models[index]
        divisor += importance
    return total / divisor
