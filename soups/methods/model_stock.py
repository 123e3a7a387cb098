"""Model stock: the mean of the models, pulled to the base by the angle between them (arXiv:2403.19522)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from torch import Tensor

from soups.methods._task_vectors import combine, cosine, inner_products, used
from soups.methods._weights import check_convex, one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "required"
ELEMENTWISE = False
MIN_DENOMINATOR = 1e-6  # opposed task vectors have no finite estimate: stay at the base


def check(weights: Sequence[float]) -> None:
    """Require coefficients in [0, 1] that sum to one."""
    check_convex(weights, extrapolate=False)


def measure(models: Sequence[Tensor], weights: Sequence[float], base: Tensor, place: Place | None) -> list[float]:
    """Return for each model its coefficient, times how far to go from the base to the weighted mean.

    Jang et al. 2024 assume task vectors of equal norm and one angle between all pairs, and choose the point of
    the plane that is nearest to the centre of the fine-tuned weights. For coefficients w that sum to one this is
    the fraction c / (c + (1 - c) * sum w^2) of the way, c the mean cosine; for k equal coefficients it is the
    paper's k c / (1 + (k - 1) c). In that picture c is the squared distance of the centre from the base: of a
    negative cosine it says nothing, and the formula would walk away from all models, so that is taken for zero.
    """
    chosen = used(weights)
    products = inner_products([models[index] for index in chosen], base)
    pairs = list(combinations(range(len(chosen)), 2))
    mean_cosine = sum(cosine(products, i, j) for i, j in pairs) / len(pairs) if pairs else 1.0
    mean_cosine = max(mean_cosine, 0.0)
    denominator = mean_cosine + (1 - mean_cosine) * sum(weight**2 for weight in weights)
    fraction = mean_cosine / denominator if abs(denominator) >= MIN_DENOMINATOR else 0.0
    return [weight * fraction for weight in weights]


def merge(models: Sequence[Tensor], weights: Sequence[float], base: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return ``base + sum_i coefficients[i] * (models[i] - base)``."""
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    chosen = used(weights)
    return base + combine([models[index] - base for index in chosen], [coefficients[index] for index in chosen])
