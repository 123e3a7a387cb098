"""Coefficients per tensor: rules with anchored patterns and depth profiles, resolved against the tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from soups.errors import UserError

MAX_EXAMPLES = 3
Profile = tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """Coefficients of the tensors whose whole name matches a pattern.

    Attributes:
        pattern: a regular expression for the whole name.
        weights: per model, in order, one number, or the values at evenly spaced depths: then the only group of
            the pattern is the number of the layer, and the coefficient is linear between the values.
    """

    pattern: str
    weights: tuple[Profile, ...]

    @property
    def is_profile(self) -> bool:
        """Say whether the coefficients depend on the depth."""
        return any(len(values) > 1 for values in self.weights)


def compile_pattern(pattern: str, where: str) -> re.Pattern[str]:
    """Compile a regular expression.

    Raises:
        UserError: it is not one.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        fix = r"write a regular expression for the whole name, such as encoder\..*"
        raise UserError(f"not a regular expression: {pattern!r} ({error})", where=where, fix=fix) from error


def matching(pattern: str, names: Iterable[str], where: str) -> dict[str, re.Match[str]]:
    """Return the names that a pattern matches as a whole.

    Raises:
        UserError: it matches none; a pattern that does nothing is a typing error.
    """
    names = list(names)
    compiled = compile_pattern(pattern, where)
    found = {name: match for name in names if (match := compiled.fullmatch(name))}
    if not found:
        inside = [name for name in names if compiled.search(name)][:MAX_EXAMPLES]
        shown = inside or names[:MAX_EXAMPLES]
        hint = "the whole name must match; found inside: " if inside else "names are such as: "
        raise UserError(f"pattern {pattern!r} matches no tensor", where=where, fix=hint + ", ".join(shown))
    return found


def resolve_weights(
    default: Sequence[float], rules: Sequence[Rule], names: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """Return the coefficients of every tensor: those of the first rule that matches, else the default.

    Raises:
        UserError: a rule matches nothing, or only what earlier rules took; a profile without a layer number.
    """
    table: dict[str, tuple[float, ...]] = {}
    for number, rule in enumerate(rules, start=1):
        where = f"coefficients, rule {number}"
        found = matching(rule.pattern, names, where)
        if all(name in table for name in found):
            fix = "put it before the rule that takes its tensors, or remove it"
            raise UserError(f"pattern {rule.pattern!r} matches only tensors of earlier rules", where=where, fix=fix)
        depths = _depths(found, where) if rule.is_profile else {}
        for name in found:
            at_depth = tuple(interpolate(values, depths.get(name, 0.0)) for values in rule.weights)
            table.setdefault(name, at_depth)
    return {name: table.get(name, tuple(default)) for name in names}


def _depths(found: Mapping[str, re.Match[str]], where: str) -> dict[str, float]:
    """Return layer / (number of layers - 1) for each name."""
    layers: dict[str, int] = {}
    for name, match in found.items():
        groups = match.groups()
        if len(groups) != 1 or not (groups[0] or "").isdecimal():
            raise UserError(
                f"a list of coefficients needs the number of the layer, not found in {name!r}",
                where=where,
                fix=r"put it in the only group of the pattern, such as encoder\.layers\.(\d+)\..*",
            )
        layers[name] = int(groups[0])
    last = max(layers.values())
    return {name: layer / last if last else 0.0 for name, layer in layers.items()}


def interpolate(values: Profile, depth: float) -> float:
    """Return the piecewise-linear function through evenly spaced values at a depth in [0, 1].

    >>> interpolate((0.0, 1.0, 0.0), 0.25)
    0.5
    """
    position = depth * (len(values) - 1)
    low = min(int(position), max(len(values) - 2, 0))
    if position == low:
        return values[low]
    return values[low] + (values[low + 1] - values[low]) * (position - low)


def check_finite(values: Iterable[float], where: str) -> None:
    """Require finite numbers."""
    if not all(isfinite(value) for value in values):
        raise UserError("coefficients must be finite", where=where, fix="give numbers")
