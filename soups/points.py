"""Where to evaluate: coefficients on a segment, on a simplex, or given by hand.

A point is a tuple of coefficients in the order of the checkpoints; `sweep` names them before it stores them.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from soups.errors import UserError

Point = tuple[float, ...]


def segment(num_points: int = 11, low: float = 0.0, high: float = 1.0) -> list[Point]:
    """Return evenly spaced points between two models; the weight of the second runs from ``low`` to ``high``.

    Both ends are exact: (1, 0) to (0, 1) by default; beyond them it extrapolates.

    >>> segment(3)
    [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    >>> segment(3, -0.5, 1.5)
    [(1.5, -0.5), (0.5, 0.5), (-0.5, 1.5)]
    """
    if num_points < 2:
        raise UserError(f"a segment needs at least 2 points, got {num_points}", fix="give --points 2 or more")
    if (low, high) == (0.0, 1.0):
        return lattice(2, num_points - 1)
    if not (isfinite(low) and isfinite(high) and low < high):
        raise UserError(f"not a range: {low:g} to {high:g}", where="--range", fix="such as --range -0.5,1.5")
    shares = [round(low + (high - low) * i / (num_points - 1), 12) for i in range(num_points)]
    return [(round(1 - share, 12), share) for share in shares]


def lattice(num_models: int, divisions: int) -> list[Point]:
    """Return every point of the simplex whose coefficients are multiples of ``1 / divisions``.

    The lattice of Das and Dennis (1998): C(divisions + num_models - 1, num_models - 1) points, corners exact,
    from all the weight on the first model to all on the last.
    """
    if num_models < 1 or divisions < 1:
        raise UserError(f"no lattice of {num_models} models, {divisions} divisions", fix="give 1 or more of each")
    return [tuple(count / divisions for count in counts) for counts in _compositions(divisions, num_models)]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for head in range(total, -1, -1):
        for tail in _compositions(total - head, parts - 1):
            yield (head, *tail)


def grid(num_models: int, num_points: int = 11) -> list[Point]:
    """Return the default design: ``num_points`` on each edge of the simplex of the models.

    One model has one point; two models have ``num_points``; three have the triangular lattice (66 for 11).
    """
    if num_models == 1:
        return [(1.0,)]
    return segment(num_points) if num_models == 2 else lattice(num_models, max(num_points - 1, 1))


def corners(num_models: int) -> list[Point]:
    """Return the points with all the weight on one model, in the order of the models."""
    return [tuple(float(i == model) for i in range(num_models)) for model in range(num_models)]


def draws(num_models: int, num_points: int, seed: int = 0) -> list[Point]:
    """Return random points, uniform on the simplex (Dirichlet with all parameters one)."""
    rng = random.Random(seed)
    parts = [[rng.expovariate(1.0) for _ in range(num_models)] for _ in range(num_points)]
    return [tuple(part / sum(row) for part in row) for row in parts]


def explicit(lists: Iterable[Sequence[float]], num_models: int, num_parts: int = 1) -> list[Point]:
    """Check points given by hand: one finite coefficient per model; duplicates are dropped, order kept.

    Args:
        lists: the points.
        num_models: how many models are mixed.
        num_parts: how often each point names a coefficient per model: once, and once more for each module.

    Raises:
        UserError: the number of coefficients is not the number of models, or one is not finite.
    """
    fix = "give one weight per model, in the order of the models, such as 0.5,0.5"
    if num_parts > 1:
        fix = f"{num_models} for the model, then as many after a semicolon for each of {num_parts - 1} modules"
    points: dict[Point, None] = {}
    for weights in lists:
        listed = ",".join(f"{weight:g}" for weight in weights)
        if len(weights) != num_models * num_parts:
            count = f"{len(weights)} weight{'s' * (len(weights) != 1)}"
            wanted = f" for {num_models} models" if num_parts == 1 else f", {num_models * num_parts} are needed"
            raise UserError(f"{count}{wanted}: {listed}", where="--weights", fix=fix)
        if not all(isfinite(weight) for weight in weights):
            raise UserError(f"weights must be finite: {listed}", where="--weights", fix="give numbers")
        points[tuple(float(weight) + 0.0 for weight in weights)] = None  # + 0.0 turns -0.0 into 0.0
    return list(points)
