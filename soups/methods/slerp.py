"""Spherical interpolation of two models, along the great circle between them (Shoemake 1985, SIGGRAPH).

With a base, the task vectors are interpolated, as in WARP (Rame et al. 2024, arXiv:2406.16768): the full
weights of two fine-tunings are nearly parallel, and then slerp is linear interpolation.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from soups.errors import UserError
from soups.methods._weights import check_range, check_sum, one_hot

BASE = "optional"
ELEMENTWISE = False
MIN_SINE = 1e-6  # below it the plane of the two vectors is not defined in float64: interpolate linearly


def check(weights: Sequence[float], *, extrapolate: bool = False) -> None:
    """Require two coefficients that sum to one, in [0, 1] unless ``extrapolate``."""
    if len(weights) != 2:
        raise UserError(f"slerp merges two models, got {len(weights)}", fix="use --method linear")
    if not extrapolate:
        check_range(weights)
    check_sum(weights)  # also outside [0, 1]: the coefficients are fractions of one angle


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None = None,
    *,
    extrapolate: bool = False,
) -> Tensor:
    """Return the point at the fraction ``weights[1]`` of the angle from the first model to the second.

    The parameter is one vector, whatever its shape. Parallel, opposite and zero vectors have no unique great
    circle; they are interpolated linearly.
    """
    check(weights, extrapolate=extrapolate)
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    first, second = models if base is None else [model - base for model in models]
    merged = _on_great_circle(first, second, weights)
    return merged if base is None else base + merged


def _on_great_circle(first: Tensor, second: Tensor, weights: Sequence[float]) -> Tensor:
    norms = float(first.norm()) * float(second.norm())
    cosine = float((first * second).sum()) / norms if norms > 0 else 1.0
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if math.sin(angle) < MIN_SINE:
        return first * weights[0] + second * weights[1]
    return first * (math.sin(weights[0] * angle) / math.sin(angle)) + second * (
        math.sin(weights[1] * angle) / math.sin(angle)
    )
