"""Task arithmetic: the base plus weighted task vectors (Ilharco et al. 2023, arXiv:2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soups.methods._weights import one_hot, zeros_like

if TYPE_CHECKING:
    from torch import Tensor

BASE = "required"
ELEMENTWISE = True
ARRAYS = True


def check(weights: Sequence[float], **others: object) -> None:
    """Accept any coefficients: negative ones forget a task, and their sum need not be one."""


def merge(models: Sequence[Tensor], weights: Sequence[float], base: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return ``base + scale * sum_i weights[i] * (models[i] - base)``."""
    endpoint = one_hot(weights)
    if endpoint is not None and scale == 1:
        return models[endpoint]
    shift = zeros_like(base)
    for model, weight in zip(models, weights, strict=True):
        if weight != 0:
            shift += (model - base) * weight
    return base + shift * scale
