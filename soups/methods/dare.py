"""DARE: drop random entries of the task vectors, rescale the rest (Yu et al. 2024, arXiv:2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from soups.methods._task_vectors import check_fraction, combine, generators, used
from soups.methods._weights import one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "required"
ELEMENTWISE = False
EXACT = {"density": 1.0}


def check(weights: Sequence[float], *, density: float, **others: object) -> None:
    """Require a density in (0, 1]; accept any coefficients."""
    check_fraction("density", density)


def measure(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    place: Place | None,
    *,
    density: float,
    seed: int,
    **others: object,
) -> list[Tensor]:
    """Return for each model which entries stay: each with probability ``density``, independently."""
    shape = base.shape
    return [
        torch.empty(shape, dtype=torch.bool).bernoulli_(density, generator=draw).to(base.device)
        for draw in generators(place, seed)
    ]


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    masks: Sequence[Tensor],
    *,
    density: float = 0.1,
    scale: float = 1.0,
    elect: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return the base plus ``scale`` times the sum of the thinned task vectors.

    The entries that stay are divided by ``density``, so that the expected task vector is unchanged. With
    ``elect``, entries whose sign is not that of the weighted sum are left out (DARE-TIES).
    """
    endpoint = one_hot(weights)
    if endpoint is not None and density == scale == 1:
        return models[endpoint]
    deltas = [(models[index] - base) * masks[index] / density for index in used(weights)]
    return base + combine(deltas, [weights[index] for index in used(weights)], elect=elect) * scale
