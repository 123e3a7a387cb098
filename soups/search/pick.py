"""Choose coefficients for one user: who weighs the rewards, among points already scored.

Every policy works on the stored scores per sample; none needs the models. Policies that look at scores are
compared by cross-validation over the samples, because the point with the best mean is partly the luckiest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from soups import pareto
from soups.compare import estimate
from soups.errors import UserError, did_you_mean
from soups.front import expert_rows
from soups.methods._weights import sums_to_one
from soups.pareto import Floats
from soups.points import Point, lattice
from soups.results import Result
from soups.theory import best_coefficients

MIN_GAIN = 1e-12
DIGITS = 12  # of coefficients that are computed
SEARCH = {1: 1, 2: 200, 3: 60, 4: 24, 5: 14}  # divisions of the lattice on which a fit is maximised


@dataclass(frozen=True)
class Table:
    """The scores of a sweep for the metrics of one preference.

    Attributes:
        names: the checkpoints (N).
        metrics: the metrics preferred (K).
        preference: their weights (K,), which sum to one.
        coefficients: of the points (P, N).
        scores: per sample (P, S, K), each metric divided by its scale.
        experts: the row of each checkpoint alone, or None where one was not scored.
        is_simplex: whether the coefficients of a point sum to one, so that a quadratic is fitted on a simplex.
    """

    names: Sequence[str]
    metrics: Sequence[str]
    preference: Floats
    coefficients: Floats
    scores: Floats
    experts: Sequence[int] | None
    is_simplex: bool = True

    @property
    def utilities(self) -> Floats:
        """Return what the user gains from each point on each sample (P, S)."""
        return self.scores @ self.preference


def table_of(results: Sequence[Result], preference: Mapping[str, float], *, raw: bool = False) -> Table:
    """Collect the scores that a preference is about.

    Args:
        results: the points of one sweep.
        preference: a weight per metric.
        raw: weigh the metrics as they are; by default each is divided by its range among the experts (among all
            points where one was not scored alone), so that a weight means the same for every metric.

    Raises:
        UserError: no points, an unknown metric, or weights that are negative or all zero.
    """
    if not results:
        raise UserError("no finished point yet", fix="run soups sweep first")
    known = results[0].metrics
    for metric, weight in preference.items():
        if metric not in known:
            raise UserError(f"unknown metric {metric!r}", where="--preference", fix=did_you_mean(metric, known))
        if not weight >= 0:
            raise UserError(f"the weight of {metric!r} is {weight:g}", where="--preference", fix="give 0 or more")
    if not sum(preference.values()) > 0:
        raise UserError("no metric has a weight", where="--preference", fix="such as --preference CIDEr=0.7,BLEU=0.3")
    rows = [result.every_coefficient for result in results]
    names = list(rows[0])
    coefficients = np.array([[row[name] for name in names] for row in rows])
    scores = np.array([[r.scores[metric] for metric in preference] for r in results]).transpose(0, 2, 1)
    experts = expert_rows(results)
    is_simplex = not results[0].modules and all(map(sums_to_one, coefficients.tolist()))
    means = scores.mean(axis=1)
    span = np.ptp(means if experts is None else means[experts], axis=0)
    scale = np.ones(len(preference)) if raw else np.where(span > 0, span, 1.0)
    weights = np.array(list(preference.values()), float)
    return Table(names, list(preference), weights / weights.sum(), coefficients, scores / scale, experts, is_simplex)


def specialists(experts: Floats) -> list[int]:
    """Return the row of the expert (N, K) that is best in each reward.

    Raises:
        UserError: one expert is the best in two rewards, so that the rewards do not name the coefficients.
    """
    best = [int(row) for row in experts.argmax(axis=0)]
    if len(set(best)) < len(best):
        raise UserError(
            "one model is the best of all in two of these metrics",
            where="--preference",
            fix="leave one of them out, or sweep more points and use another policy",
        )
    return best


def from_preference(table: Table, rows: Sequence[int]) -> Floats:
    """Return the preference itself as coefficients of the specialists; uses nothing but who they are."""
    return _on_specialists(table, rows, lambda means, best: table.preference)


def from_endpoints(table: Table, rows: Sequence[int]) -> Floats:
    """Return the closed form for quadratic rewards; uses the scores of the models alone (`soups.theory`)."""

    def closed_form(means: Floats, best: list[int]) -> Floats:
        others = [[b for b in best if b != own] for own in best]
        gaps = [means[own, k] - means[others[k], k].mean() if others[k] else 1.0 for k, own in enumerate(best)]
        return best_coefficients(table.preference, np.array(gaps))

    return _on_specialists(table, rows, closed_form)


def _on_specialists(table: Table, rows: Sequence[int], weigh: Callable[[Floats, list[int]], Floats]) -> Floats:
    assert table.experts is not None
    best = specialists(table.scores[table.experts].mean(axis=1))  # in a part of the samples two may seem the same
    means = table.scores[np.ix_(table.experts, rows)].mean(axis=1)
    coefficients = np.zeros(len(table.names))
    coefficients[best] = weigh(means, best)
    return coefficients


def from_quadratic_fit(table: Table, rows: Sequence[int]) -> Floats:
    """Return the best point of the simplex for a quadratic fitted to all points: smooths noise."""
    values = table.utilities[:, rows].mean(axis=1)
    fitted, *_ = np.linalg.lstsq(_quadratic(table.coefficients), values, rcond=None)
    num_models = len(table.names)
    candidates = np.array(lattice(num_models, SEARCH.get(num_models, 10)))
    return candidates[int((_quadratic(candidates) @ fitted).argmax())]


def _quadratic(coefficients: Floats) -> Floats:
    """Return the terms of a quadratic on the simplex: each coefficient, and each product of two (Scheffe 1958)."""
    pairs = list(combinations(range(coefficients.shape[1]), 2))
    products = [coefficients[:, i] * coefficients[:, j] for i, j in pairs]
    return np.column_stack([coefficients, *products]) if products else coefficients


def best_measured(table: Table, rows: Sequence[int]) -> Floats:
    """Return the point with the best mean."""
    return table.coefficients[int(table.utilities[:, rows].mean(axis=1).argmax())]


Policy = Callable[[Table, Sequence[int]], Floats]
POLICIES: dict[str, Policy] = {
    "preference": from_preference,
    "closed form": from_endpoints,
    "quadratic fit": from_quadratic_fit,
    "best measured": best_measured,
}


def usable_policies(table: Table) -> dict[str, Policy]:
    """Return the policies for which the table holds enough: experts, and points for a fit."""
    usable = dict(POLICIES)
    if table.experts is None or _specialists_or_none(table) is None:
        del usable["preference"], usable["closed form"]
    if not table.is_simplex or len(table.coefficients) < _quadratic(table.coefficients).shape[1]:
        del usable["quadratic fit"]
    return usable


def _specialists_or_none(table: Table) -> list[int] | None:
    try:
        return specialists(table.scores[table.experts].mean(axis=1))
    except UserError:
        return None


def pick(table: Table, *, num_folds: int = 5, num_resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Return what each policy chooses, and the choice of the one that does best on samples it has not seen.

    Each policy chooses on all folds of the samples but one and is judged on that one, at the measured point
    nearest to its choice. With fewer than two samples there is nothing to hold out: the best measured point wins.
    """
    num_samples = table.scores.shape[1]
    everything = np.arange(num_samples)
    folds = np.array_split(np.random.default_rng(seed).permutation(num_samples), min(num_folds, num_samples))
    resampled = pareto.resampled_means(table.utilities[:, :, None], num_resamples, seed)[:, :, 0]
    rows = []
    for name, policy in usable_policies(table).items():
        chosen = policy(table, everything)
        index = nearest(table.coefficients, chosen)
        measured = table.coefficients[index]
        held_out = None
        if num_samples > 1:
            held_out = float(np.mean([_held_out(table, policy, fold) for fold in folds]))
        rows.append(
            {
                "policy": name,
                "coefficients": _named(table.names, measured if _equal(chosen, measured) else chosen.round(DIGITS)),
                "measured_at": _named(table.names, measured),
                "utility": estimate(float(table.utilities[index].mean()), resampled[:, index], 0.95),
                "held_out_utility": held_out,
            }
        )

    def standing(row: dict[str, Any]) -> tuple[float, bool]:
        # Of equals not the fit: through constant scores it is noise of rounding.
        value = row["held_out_utility"] if num_samples > 1 else row["utility"]["value"]
        return value, row["policy"] != "quadratic fit"

    best = max(rows, key=standing)
    return {
        "preference": dict(zip(table.metrics, table.preference.tolist(), strict=True)),
        "num_points": len(table.coefficients),
        "num_samples": num_samples,
        "policies": rows,
        "choice": {"policy": best["policy"], "coefficients": best["coefficients"]},
    }


def _held_out(table: Table, policy: Policy, fold: np.ndarray) -> float:
    seen = np.setdiff1d(np.arange(table.scores.shape[1]), fold)
    return float(table.utilities[nearest(table.coefficients, policy(table, seen.tolist()))][fold].mean())


def nearest(coefficients: Floats, chosen: Floats) -> int:
    """Return the index of the point (P, N) nearest to one point (N,)."""
    distances = ((coefficients - chosen) ** 2).sum(axis=1).round(DIGITS)  # of equally near ones the first
    return int(distances.argmin())


def _equal(chosen: Floats, measured: Floats) -> bool:
    """Say whether a choice is a point that was measured, whose last digits then count: the same bytes are merged."""
    return bool((chosen.round(DIGITS) == measured.round(DIGITS)).all())


def _named(names: Sequence[str], coefficients: Floats) -> dict[str, float]:
    return {name: float(weight) for name, weight in zip(names, coefficients, strict=True)}


def next_point(table: Table) -> Point | None:
    """Return the next point worth scoring: halfway between the best point and the best neighbour that is not near.

    A neighbour is a point such that no scored point is nearer to both; it is near where half the way is a step below
    1/128. None when there is no other.
    """
    values = table.utilities.mean(axis=1)
    best = int(values.argmax())
    distances = np.abs(table.coefficients[:, None] - table.coefficients[None]).max(axis=2)
    far = [p for p in range(len(values)) if distances[best, p] >= 1 / 64]
    open_sides = [p for p in far if _are_neighbours(distances, best, p)]
    if not open_sides:
        return None
    second = max(open_sides, key=lambda p: values[p])
    middle = (table.coefficients[best] + table.coefficients[second]) / 2
    return tuple(round(float(weight), DIGITS) for weight in middle)


def _are_neighbours(distances: Floats, first: int, second: int) -> bool:
    between = np.maximum(distances[first], distances[second]) < distances[first, second] - MIN_GAIN
    return not bool(between.any())
