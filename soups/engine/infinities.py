"""Infinities that all models share, as masks hold: there is no difference of them. For tensors and for arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def keep_equal(merged: Any, models: Sequence[Any], weights: Sequence[float], base: Any = None) -> None:
    """Give entries that are the same in all inputs what copies merge to, where arithmetic made a NaN of them.

    Masks hold minus infinity, of which there is no difference. Finite entries are not touched.

    Args:
        merged: the result, a tensor or an array; it is changed in place.
        models: what went into it, as wide as the result.
        weights: their coefficients; models without one are not read.
        base: the common initialisation, if it went in too.
    """
    if not has_nan(merged):
        return
    wrong = merged != merged
    given = [model for model, weight in zip(models, weights, strict=True) if weight != 0]
    if base is not None:
        given.append(base)
    for other in given:
        wrong &= given[0] == other
    if given:
        merged[wrong] = given[0][wrong] * (sum(weights) if base is None else 1.0)


def has_nan(values: Any) -> bool:
    """Say whether there may be a NaN among numbers: their sum is one, at a fraction of the cost of a look at each."""
    total = values.sum()
    return bool(total != total)
