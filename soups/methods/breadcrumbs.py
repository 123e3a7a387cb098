"""Breadcrumbs: drop the largest and the small entries of task vectors (Davari & Belilovsky 2024, arXiv:2312.06795)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from soups.errors import UserError
from soups.methods._task_vectors import check_fraction, combine, kth_largest, magnitude, magnitudes, used
from soups.methods._weights import one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "required"
ELEMENTWISE = False
EXACT = {"density": 1.0, "outliers": 0.0}


def check(weights: Sequence[float], *, density: float, outliers: float, **others: object) -> None:
    """Require fractions that fit into one; accept any coefficients."""
    check_fraction("density", density)
    if outliers < 0 or density + outliers > 1:
        fix = f"give a fraction from 0 to {1 - density:g}, what the density leaves"
        raise UserError(f"outliers is {outliers:g} with a density of {density:g}", fix=fix)


def measure(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    place: Place | None,
    *,
    density: float,
    outliers: float,
    **others: object,
) -> list[tuple[float, float]]:
    """Return for each model the smallest magnitude that is kept, and the smallest that is an outlier."""
    size = base.numel()
    num_outliers = int(outliers * size)
    count = num_outliers + max(1, int(density * size))
    bounds = []
    for model, weight in zip(models, weights, strict=True):
        sizes = magnitudes(model, base) if weight != 0 else None
        bounds.append((0.0, 0.0) if sizes is None else (kth_largest(sizes, count), kth_largest(sizes, num_outliers)))
    return bounds


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    bounds: Sequence[tuple[float, float]],
    *,
    density: float = 0.15,
    outliers: float = 0.01,
    scale: float = 1.0,
    elect: bool = False,
) -> Tensor:
    """Return the base plus ``scale`` times the sum of the task vectors, without outliers and small entries.

    Per parameter and model, the ``outliers`` largest entries and those that equal the smallest of them are
    dropped; of the rest the ``density`` largest are kept. With ``elect``, entries whose sign is not that of the
    weighted sum are left out.
    """
    endpoint = one_hot(weights)
    if endpoint is not None and density == scale == 1:
        return models[endpoint]
    deltas = []
    for index in used(weights):
        delta = models[index] - base
        size, (low, high) = magnitude(delta), bounds[index]
        deltas.append(delta * ((size >= low) & (size < high)))
    return base + combine(deltas, [weights[index] for index in used(weights)], elect=elect) * scale
