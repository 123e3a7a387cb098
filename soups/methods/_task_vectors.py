"""What methods do with task vectors (model minus base): measure them, trim them, add them up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from soups.engine.infinities import has_nan
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.methods import Place

CHUNK_ELEMENTS = 1 << 18


def check_fraction(name: str, value: float) -> None:
    """Require a fraction in (0, 1].

    Raises:
        UserError: outside.
    """
    if not 0 < value <= 1:
        raise UserError(f"{name} is {value:g}", fix=f"give a {name} above 0, at most 1")


def inner_products(vectors: Sequence[Tensor], base: Tensor | None = None) -> list[list[float]]:
    """Return the inner products of all pairs of (task) vectors, summed in float64 by pieces."""
    flat = [vector.reshape(-1) for vector in vectors]
    origin = None if base is None else base.reshape(-1)
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, flat[0].numel(), CHUNK_ELEMENTS):
        piece = slice(start, start + CHUNK_ELEMENTS)
        wide = torch.stack([vector[piece].double() for vector in flat])
        if origin is not None:
            wide = difference(wide, origin[piece].double())
        # Products summed one pair at a time: a matrix product may sum (i, j) and (j, i) in different orders.
        for i in range(len(flat)):
            for j in range(i, len(flat)):
                total[i, j] += (wide[i] * wide[j]).sum().cpu()
    return (total + total.triu(1).t()).tolist()


def cosine(products: Sequence[Sequence[float]], i: int, j: int) -> float:
    """Return the cosine of two vectors from their inner products; 1 if one of them is zero."""
    norms = math.sqrt(products[i][i]) * math.sqrt(products[j][j])
    return min(1.0, max(-1.0, products[i][j] / norms)) if norms > 0 else 1.0


def magnitudes(model: Tensor, base: Tensor) -> Tensor:
    """Return the flat absolute task vector in float32, computed as `magnitude` does."""
    result = torch.empty(model.numel(), dtype=torch.float32, device=model.device)
    flat_model, flat_base = model.reshape(-1), base.reshape(-1)
    for start in range(0, model.numel(), CHUNK_ELEMENTS):
        piece = slice(start, start + CHUNK_ELEMENTS)
        result[piece] = magnitude(difference(flat_model[piece].double(), flat_base[piece].double()))
    return result


def difference(model: Tensor, base: Tensor) -> Tensor:
    """Return a task vector to measure: infinities of both, as masks hold, differ by nothing."""
    delta = model - base
    return delta.masked_fill_(model == base, 0.0) if has_nan(delta) else delta


def magnitude(delta: Tensor) -> Tensor:
    """Return absolute values rounded to float32: thresholds and entries must be rounded alike to compare equal."""
    return delta.abs().float()


def kth_largest(values: Tensor, count: int) -> float:
    """Return the value that ``count`` entries (1-D) reach; infinity for none, minus infinity for all.

    The entries may be left in another order.
    """
    if count <= 0:
        return math.inf
    if count >= values.numel():
        return -math.inf
    place = values.numel() - count
    if values.device.type == "cpu" and values.is_contiguous():
        array = values.numpy()
        array.partition(place)  # in place, where kthvalue makes a copy and an index of eight bytes per entry
        return float(array[place])
    return float(values.kthvalue(place + 1).values)


def num_kept(density: float, size: int) -> int:
    """Return how many of ``size`` entries a density keeps: rounded down, but at least one."""
    return max(1, int(density * size))


def generators(place: Place | None, seed: int) -> list[torch.Generator]:
    """Return one random generator per model, seeded by (seed, tensor, model)."""
    if place is None:
        raise ValueError("a random method must be told which parameter it merges")
    keys = [f"{seed}\n{place.tensor}\n{model}" for model in place.models]
    return [torch.Generator().manual_seed(_to_seed(key)) for key in keys]


def _to_seed(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)


def combine(
    deltas: Sequence[Tensor], weights: Sequence[float], *, elect: bool = False, normalize: bool = False
) -> Tensor:
    """Add task vectors up, each times its coefficient; of none, the sum is one zero.

    Args:
        deltas: task vectors, trimmed.
        weights: their coefficients.
        elect: per entry, keep only the vectors with the sign of the weighted sum (TIES, arXiv:2306.01708).
        normalize: per entry, divide by the coefficients of the vectors that were added.
    """
    if not deltas:
        return torch.zeros(())
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    total = torch.zeros_like(weighted[0])
    for term in weighted:
        total += term
    if not elect:
        return total / sum(weights) if normalize else total
    is_positive = total >= 0
    total, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for term, weight in zip(weighted, weights, strict=True):
        agrees = torch.where(is_positive, term > 0, term < 0).to(total.dtype)  # a bool times 0.1 would be float32
        total += term * agrees
        divisor += agrees * weight
    return total / divisor.masked_fill_(divisor == 0, 1.0) if normalize else total


def used(weights: Sequence[float]) -> list[int]:
    """Return the indices of the models with a coefficient; the others are not read, infinities and all."""
    return [index for index, weight in enumerate(weights) if weight != 0]
