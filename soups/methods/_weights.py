"""Checks on coefficients shared by the methods."""

from collections.abc import Iterable, Sequence
from typing import Any

from soups.errors import UserError

PERMIT = "permit it if it is intended: --extrapolate, or params: {extrapolate: true} in a recipe"
SUM_TOLERANCE = 1e-6  # 0.333,0.333,0.333 is a mistake that shrinks every weight by 0.1 %; 1/3 + 1/3 + 1/3 is not


def check_convex(weights: Sequence[float], *, extrapolate: bool) -> None:
    """Require coefficients in [0, 1] that sum to one, unless extrapolation was asked for.

    Raises:
        UserError: a coefficient is outside [0, 1], or the sum is not one, without ``extrapolate``.
    """
    if not extrapolate:
        check_range(weights)
        check_sum(weights, fix=f"give coefficients that sum to 1, or {PERMIT}")


def check_range(weights: Sequence[float]) -> None:
    """Require coefficients in [0, 1]."""
    if any(not 0 <= weight <= 1 for weight in weights):
        raise UserError(f"coefficients outside [0, 1]: {_listed(weights)}", fix=PERMIT)


def check_sum(weights: Sequence[float], fix: str = "give coefficients that sum to 1") -> None:
    """Require coefficients that sum to one."""
    if not sums_to_one(weights):
        raise UserError(f"coefficients sum to {sum(weights):g}, not to 1: {_listed(weights)}", fix=fix)


def sums_to_one(weights: Iterable[float]) -> bool:
    """Say whether coefficients sum to one, but for rounding."""
    return abs(sum(weights) - 1) <= SUM_TOLERANCE


def one_hot(weights: Sequence[float]) -> int | None:
    """Return the index of the only non-zero coefficient if it is exactly one, else None."""
    used = [index for index, weight in enumerate(weights) if weight != 0]
    return used[0] if len(used) == 1 and weights[used[0]] == 1 else None


def zeros_like(values: Any) -> Any:
    """Return zeros in the shape, dtype and kind of a tensor or an array."""
    if hasattr(values, "new_zeros"):
        return values.new_zeros(values.shape)
    import numpy as np

    return np.zeros_like(values)


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)
