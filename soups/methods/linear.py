"""Linear interpolation: the sum of the models, each times its coefficient.

Rewarded soups (Rame et al. 2023, arXiv:2306.04488) and model soups (Wortsman et al. 2022, arXiv:2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soups.methods._weights import check_convex, one_hot, zeros_like

if TYPE_CHECKING:
    from torch import Tensor

BASE = "none"
ELEMENTWISE = True
ARRAYS = True
SUM = True


def check(weights: Sequence[float], *, extrapolate: bool) -> None:
    """Require coefficients in [0, 1] that sum to one, unless ``extrapolate``."""
    check_convex(weights, extrapolate=extrapolate)


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None = None,
    *,
    extrapolate: bool = False,
) -> Tensor:
    """Return the sum of ``weights[i] * models[i]``; models with a coefficient of zero are not read."""
    check(weights, extrapolate=extrapolate)
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    total: Tensor | None = None
    for model, weight in zip(models, weights, strict=True):
        if weight != 0:  # 0 * inf would poison the sum
            term = model * weight  # product and sum rounded apart: the order of two models is irrelevant
            if total is None:
                total = term
            else:
                total += term
    return zeros_like(models[0]) if total is None else total
