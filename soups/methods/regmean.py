"""RegMean: the linear layer whose outputs are nearest to those of all models (Jin et al. 2023, arXiv:2212.09849)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soups.errors import UserError
from soups.methods import linear
from soups.methods._task_vectors import used
from soups.methods._weights import check_convex, one_hot

BASE = "none"
ELEMENTWISE = False
EXTRA = "Gram matrix"
MIN_SCALE = 1e-30  # of an all-zero Gram matrix, which then counts for nothing against the others


def check(weights: Sequence[float], *, shrink: float, ridge: float) -> None:
    """Require coefficients in [0, 1] that sum to one, ``shrink`` in [0, 1] and a positive ``ridge``."""
    check_convex(weights, extrapolate=False)
    if not 0 <= shrink <= 1:
        raise UserError(f"shrink is {shrink:g}", fix="give a factor from 0 (diagonal) to 1 (as stored)")
    if ridge <= 0:
        raise UserError(f"ridge is {ridge:g}", fix="give a positive number")


def merge(
    models: Sequence[Tensor],
    weights: Sequence[float],
    base: Tensor | None,
    grams: Sequence[Tensor | None],
    *,
    shrink: float = 0.9,
    ridge: float = 1e-6,
) -> Tensor:
    """Return ``(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1``, or the weighted sum of a parameter without Gram matrices.

    Args:
        models: weights (out, in) of a linear layer, or (out, in, ...) of a convolution.
        weights: one coefficient per model.
        base: not used.
        grams: sums of x x^T over the inputs x of the layer, (in, in); (in * ..., in * ...) for a convolution.
        shrink: factor of the entries off the diagonal.
        ridge: added to the diagonal, as a fraction of its mean, so that unused inputs are averaged.

    Raises:
        UserError: only some models have a Gram matrix, or one has another size.
    """
    endpoint = one_hot(weights)
    if endpoint is not None:
        return models[endpoint]
    present = [grams[index] for index in used(weights)]
    if all(gram is None for gram in present):
        return linear.merge(models, weights)
    width = models[0][0].numel() if models[0].ndim > 1 else 0
    total = models[0].new_zeros(models[0].shape[0], width)
    divisor = models[0].new_zeros(width, width)
    for index, gram in zip(used(weights), present, strict=True):
        if gram is None or gram.shape != (width, width):
            found = "none" if gram is None else list(gram.shape)
            raise UserError(f"a Gram matrix of {[width, width]} is needed, found: {found}", fix="store one per model")
        diagonal = gram.diagonal().double()
        shrunk = gram.double() * shrink
        shrunk.diagonal().copy_(diagonal + ridge * diagonal.mean().clamp(min=MIN_SCALE))
        total += models[index].reshape(-1, width) @ shrunk * weights[index]
        divisor += shrunk * weights[index]
    return torch.linalg.solve(divisor, total, left=False).reshape(models[0].shape)
