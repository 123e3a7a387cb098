"""TIES: trim, elect a sign, average the entries that agree (Yadav et al. 2023, arXiv:2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from soups.errors import UserError
from soups.methods._task_vectors import check_fraction, combine, kth_largest, magnitude, magnitudes, num_kept, used
from soups.methods._weights import one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "required"
ELEMENTWISE = False
EXACT = {"density": 1.0}


def check(weights: Sequence[float], *, density: float, normalize: bool, **others: object) -> None:
    """Require a density in (0, 1] and, for an average, coefficients of one sign."""
    check_fraction("density", density)
    if normalize and (min(weights) < 0 or not used(weights)):
        fix = "give coefficients of at least 0, not all 0, or --param normalize=false"
        raise UserError("ties averages, and cannot with these coefficients", fix=fix)


def measure(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    place: Place | None,
    *,
    density: float,
    **others: object,
) -> list[float]:
    """Return for each model the magnitude that its kept entries reach."""
    count = num_kept(density, base.numel())
    is_whole = count == base.numel()
    return [
        kth_largest(magnitudes(model, base), count) if weight != 0 and not is_whole else 0.0
        for model, weight in zip(models, weights, strict=True)
    ]


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    thresholds: Sequence[float],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:
    """Return the base plus ``scale`` times the average, per entry, of the trimmed task vectors that agree.

    The ``density`` largest entries of each task vector are kept, and all that equal the smallest of them. The
    sign of an entry is that of the weighted sum. Without ``normalize`` the entries that agree are added up.
    """
    endpoint = one_hot(weights)
    if endpoint is not None and density == scale == 1:
        return models[endpoint]
    deltas = []
    for index in used(weights):
        delta = models[index] - base
        deltas.append(delta * (magnitude(delta) >= thresholds[index]))
    kept_weights = [weights[index] for index in used(weights)]
    return base + combine(deltas, kept_weights, elect=True, normalize=normalize) * scale
