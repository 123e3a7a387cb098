"""DELLA: drop entries at random, small ones more often, rescale the rest (Deep et al. 2024, arXiv:2406.11617)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from soups.errors import UserError
from soups.methods._task_vectors import check_fraction, combine, generators, magnitudes, used
from soups.methods._weights import one_hot

if TYPE_CHECKING:
    from soups.methods import Place

BASE = "required"
ELEMENTWISE = False
EXACT = {"density": 1.0, "spread": 0.0}
ROWS = 1024


def check(weights: Sequence[float], *, density: float, spread: float, normalize: bool, **others: object) -> None:
    """Require probabilities, from density - spread/2 to density + spread/2, in (0, 1], and a sum to divide by."""
    check_fraction("density", density)
    if normalize and not sum(weights):
        raise UserError("coefficients that sum to 0 have no average", fix="give others, or --param normalize=false")
    if spread < 0 or density - spread / 2 <= 0 or density + spread / 2 > 1:
        fix = f"give a spread from 0 to {min(2 * density, 2 - 2 * density):g}"
        raise UserError(f"spread is {spread:g} around a density of {density:g}", fix=fix)


def measure(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    place: Place | None,
    *,
    density: float,
    spread: float,
    seed: int,
    **others: object,
) -> list[Tensor]:
    """Return for each model the factor of each entry, float32: 0 if dropped, else 1 / (its probability to stay)."""
    return [
        _factors(model, base, draw, density, spread)
        for model, draw in zip(models, generators(place, seed), strict=True)
    ]


def _factors(model: Tensor, base: Tensor, draw: torch.Generator, density: float, spread: float) -> Tensor:
    """Rank the magnitudes within each row (output unit); probabilities grow evenly with the rank."""
    width = model[0].numel() if model.ndim > 1 else model.numel()
    rows = magnitudes(model, base).cpu().reshape(-1, width)
    probabilities = torch.full((width,), density)
    if width > 1:
        probabilities = torch.linspace(density - spread / 2, density + spread / 2, width)
    factors = torch.empty_like(rows)
    for start in range(0, len(rows), ROWS):  # in blocks, because ranks take 16 bytes per entry
        order = rows[start : start + ROWS].argsort(dim=1, stable=True)
        stays = torch.bernoulli(probabilities.expand_as(order), generator=draw)
        factors[start : start + ROWS].scatter_(1, order, stays / probabilities)
    return factors.reshape(model.shape).to(model.device)


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor,
    factors: Sequence[Tensor],
    *,
    density: float = 0.5,
    spread: float = 0.2,
    scale: float = 1.0,
    elect: bool = True,
    normalize: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return the base plus ``scale`` times the sum of the task vectors, each entry times its factor.

    With ``elect``, entries whose sign is not that of the weighted sum are left out. With ``normalize`` each sum is
    divided by the coefficients of what is in it, as in `ties`.
    """
    endpoint = one_hot(weights)
    if endpoint is not None and density == scale == 1:
        return models[endpoint]
    deltas = [(models[index] - base) * factors[index] for index in used(weights)]
    kept_weights = [weights[index] for index in used(weights)]
    return base + combine(deltas, kept_weights, elect=elect, normalize=normalize) * scale
