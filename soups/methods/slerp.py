"""Spherical interpolation of two models, along the great circle between them (Shoemake 1985, SIGGRAPH).

With a base, the task vectors are interpolated, as in WARP (Rame et al. 2024, arXiv:2406.16768): the full
weights of two fine-tunings are nearly parallel, and then slerp is linear interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from soups.errors import UserError
from soups.methods._task_vectors import cosine, inner_products
from soups.methods._weights import check_range, check_sum, one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "optional"
ELEMENTWISE = False
MIN_SINE = 1e-6  # below it the plane of the two vectors is not defined in float64: interpolate linearly


def check(weights: Sequence[float], *, extrapolate: bool) -> None:
    """Require two coefficients that sum to one, in [0, 1] unless ``extrapolate``."""
    if len(weights) != 2:
        raise UserError(f"slerp merges two models, got {len(weights)}", fix="use --method linear")
    if not extrapolate:
        check_range(weights)
    check_sum(weights)  # also outside [0, 1]: the coefficients are fractions of one angle


def measure(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    place: Place | None,
    *,
    extrapolate: bool,
) -> list[float]:
    """Return the two factors of the (task) vectors; the parameter is one vector, whatever its shape.

    Parallel, opposite and zero vectors have no unique great circle; they are interpolated linearly.
    """
    if one_hot(weights) is not None:  # also where only one model has the parameter
        return list(weights)
    angle = math.acos(cosine(inner_products(models, base), 0, 1))
    if math.sin(angle) < MIN_SINE:
        return list(weights)
    return [math.sin(weight * angle) / math.sin(angle) for weight in weights]


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    factors: Sequence[float],
    *,
    extrapolate: bool = False,
) -> Tensor:
    """Return the point at the fraction ``weights[1]`` of the angle from the first model to the second."""
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    first, second = models if base is None else [model - base for model in models]
    merged = first * factors[0] + second * factors[1]
    return merged if base is None else base + merged
