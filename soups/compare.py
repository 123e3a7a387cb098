"""Compare sets of models by the fronts they offer: soups, models trained on mixed rewards (MORL), ensembles.

All sets are measured in one box, so that every reward counts the same: the box spanned by all the points, with
its worst corner as the reference of the hypervolume. The target of IGD+ and of the additive epsilon is the
non-dominated union of the sets. More points make a better front, so each set is also measured at an equal number
of points, evenly spaced in its order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soups import pareto
from soups.errors import UserError, did_you_mean
from soups.pareto import Floats
from soups.results import RESULTS_NAME, read_results


@dataclass(frozen=True)
class PointSet:
    """The rewards of some models, in the order of the trade-off.

    Attributes:
        name: how people call the set.
        means: rewards (P, K).
        resampled: rewards (B, P, K) of bootstrap resamples.
        is_target: whether its points are part of the box and of the target; the straight line is not a set of
            models.
    """

    name: str
    means: Floats
    resampled: Floats
    is_target: bool = True


def read_scores(path: Path, metrics: Sequence[str]) -> Floats:
    """Read the scores (P, S, K) of a set of models, in their order.

    Args:
        path: the folder of a sweep, or a JSON file ``{"points": [{"metrics": {name: ...}}]}`` where a metric is
            a number, a list of scores, or ``{"value": number}`` as in ``front.json``.
        metrics: the K metrics wanted.

    Raises:
        UserError: no scores there, or a metric is missing.
    """
    if (path / RESULTS_NAME).is_file():
        tables = [dict(result.scores) for result in read_results(path)]
    else:
        tables = [_table(point, path) for point in _points(path)]
    rows = [[_scores_of(table, metric, path) for metric in metrics] for table in tables]
    lengths = {len(scores) for row in rows for scores in row}
    if len(lengths) != 1:
        raise UserError("these points have different numbers of samples", where=str(path), fix="score them alike")
    return np.array(rows, float).transpose(0, 2, 1)


def _points(path: Path) -> list[Any]:
    try:
        points = json.loads(path.read_text(encoding="utf-8"))["points"]
    except OSError as error:
        raise UserError("cannot read these points", where=str(path), fix="give a sweep or a JSON file") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            "no points in this file", where=str(path), fix='expected {"points": [{"metrics": {name: number}}]}'
        ) from error
    if not points:
        raise UserError("no points in this file", where=str(path), fix="score at least one model")
    return points


def _table(point: Any, path: Path) -> dict[str, Sequence[float]]:
    try:
        table: dict[str, Sequence[float]] = {}
        for metric, value in point["metrics"].items():
            value = value["value"] if isinstance(value, dict) else value
            table[metric] = [float(v) for v in value] if isinstance(value, list) else [float(value)]
            if not table[metric] or not np.isfinite(table[metric]).all():
                raise ValueError(metric)
        return table
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(
            "a point has no readable metrics",
            where=str(path),
            fix='each point is {"metrics": {name: number}}, numbers finite, lists not empty',
        ) from error


def _scores_of(table: Mapping[str, Sequence[float]], metric: str, path: Path) -> Sequence[float]:
    if metric not in table:
        raise UserError(f"no metric {metric!r}", where=str(path), fix=did_you_mean(metric, table))
    return table[metric]


def compare(sets: Sequence[PointSet], level: float = 0.95) -> dict[str, Any]:
    """Return the indicators of each set, with intervals, and what the first set does not cover of the others.

    Raises:
        ValueError: no set of models.
    """
    members = [s for s in sets if s.is_target]
    box = np.concatenate([s.means for s in members])
    num_equal = min(len(s.means) for s in members)
    means = [pareto.normalise(s.means, box) for s in sets]
    resampled = [pareto.normalise(s.resampled, box) for s in sets]
    is_target = [s.is_target for s in sets]
    target = _union(means, is_target)
    targets = [_union([r[b] for r in resampled], is_target) for b in range(len(resampled[0]))]
    rows = []
    for s, mean, draws in zip(sets, means, resampled, strict=True):
        chosen = pareto.evenly_spaced(len(mean), num_equal)
        rows.append(
            {
                "name": s.name,
                "num_points": len(mean),
                **_indicators(mean, draws, target, targets, level),
                "equal": {
                    "num_points": len(chosen),
                    **_indicators(mean[chosen], draws[:, chosen], target, targets, level),
                },
            }
        )
    return {
        "box": {"worst": box.min(axis=0).tolist(), "best": box.max(axis=0).tolist()},
        "sets": rows,
        "coverage": {s.name: _coverage(means[0], means[i]) for i, s in enumerate(sets) if i and s.is_target},
    }


def _union(sets: Sequence[Floats], is_target: Sequence[bool]) -> Floats:
    points = np.concatenate([points for points, kept in zip(sets, is_target, strict=True) if kept])
    return points[pareto.nondominated(points)]


def _indicators(
    points: Floats, draws: Floats, target: Floats, targets: Sequence[Floats], level: float
) -> dict[str, dict[str, float]]:
    corner = np.zeros(points.shape[1])
    return {
        "hypervolume": estimate(pareto.hypervolume(points, corner), pareto.hypervolumes(draws, corner), level),
        "igd_plus": _estimate_against(pareto.igd_plus, points, draws, target, targets, level),
        "epsilon": _estimate_against(pareto.additive_epsilon, points, draws, target, targets, level),
    }


def _estimate_against(
    indicator: Callable[[Floats, Floats], float],
    points: Floats,
    draws: Floats,
    target: Floats,
    targets: Sequence[Floats],
    level: float,
) -> dict[str, float]:
    values = np.array([indicator(one, union) for one, union in zip(draws, targets, strict=True)])
    return estimate(indicator(points, target), values, level)


def estimate(value: float, resampled: Floats, level: float) -> dict[str, float]:
    """Return a value with its percentile interval over resamples (B,)."""
    low, high = pareto.interval(resampled, level)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _coverage(soups: Floats, others: Floats) -> dict[str, Any]:
    """Say how far the soups are from a Pareto coverage set of the others (working hypothesis 2).

    ``shifts``: per point of the others, the additive shift, in the box, that the nearest soup needs to match it
    in every reward; not positive when a soup is at least as good.
    """
    shifts = (others[:, None, :] - soups[None, :, :]).max(axis=2).min(axis=1)
    return {
        "num_points": len(others),
        "num_uncovered": int((shifts > 1e-9).sum()),
        "epsilon": float(shifts.max()),
        "shifts": shifts.tolist(),
    }
