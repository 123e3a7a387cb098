"""From the results of a sweep to a front: what dominates what, by how much, and how sure that is.

`compute_front` returns plain data, written as ``front.json``; figures are drawn from that data alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soups import pareto
from soups.compare import PointSet, compare, estimate
from soups.errors import UserError, did_you_mean
from soups.methods._weights import sums_to_one
from soups.metric_names import written
from soups.pareto import Floats
from soups.results import RESULTS_NAME, Result, read_results

FORMAT = 1
SOUPS, LINE = "soups", "straight line"  # their names in a comparison
METRIC_FILES = ("metrics.json", "results.json")


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: percentiles over paired resamples of the samples."""

    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 0


def choose_metrics(results: Sequence[Result], x: str | None, y: str | None) -> tuple[str, str]:
    """Return the metrics of the two axes; by default the first two.

    Raises:
        UserError: no results, an unknown metric, or fewer than two metrics.
    """
    if not results:
        raise UserError("no finished point yet", where=RESULTS_NAME, fix="run soups sweep again, it resumes")
    known = list(results[0].metrics)
    for option, metric in (("--x", x), ("--y", y)):
        if metric is not None and metric not in known:
            raise UserError(f"unknown metric {metric!r}", where=option, fix=did_you_mean(metric, known))
    x = x or next((metric for metric in known if metric != y), None)
    y = y or next((metric for metric in known if metric != x), None)
    if x is None or y is None or x == y:
        raise UserError(
            f"a front needs two metrics; there are: {', '.join(known)}",
            where="--x, --y",
            fix="give two different metrics",
        )
    return x, y


def choose_more(results: Sequence[Result], more: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """Check the further metrics of a front.

    Raises:
        UserError: an unknown metric, or one given twice.
    """
    known = list(results[0].metrics)
    for number, metric in enumerate(more):
        if metric not in known:
            raise UserError(f"unknown metric {metric!r}", where="--also", fix=did_you_mean(metric, known))
        if metric in (*chosen, *more[:number]):
            raise UserError(f"metric {metric!r} is given twice", where="--also", fix="give each metric once")
    return tuple(more)


def read_init(path: Path) -> dict[str, float]:
    """Read the mean scores of the initialisation.

    Args:
        path: a JSON file with ``{metric: number or list of scores}``, possibly under ``metrics``; or a folder
            with ``metrics.json`` or ``results.json``, or with the results of a sweep of that one checkpoint.

    Raises:
        UserError: nothing there, or no scores in it.
    """
    if path.is_dir():
        if (path / RESULTS_NAME).is_file():
            results = read_results(path)
            if len(results) == 1:
                return dict(results[0].metrics)
            raise UserError(f"{len(results)} points, expected one", where=str(path), fix="sweep one checkpoint")
        found = next((path / name for name in METRIC_FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                "no scores in this folder", where=str(path), fix=f"score it first: soups sweep {path} -o DIR"
            )
        path = found
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = content.get("metrics", content)
        means = {
            metric: float(np.mean(v)) for metric, v in scores.items() if v != [] and isinstance(v, int | float | list)
        }
        if not np.isfinite(list(means.values())).all():
            raise ValueError("not finite")
        return means
    except OSError as error:
        raise UserError("cannot read the scores of the initialisation", where=str(path), fix="check --init") from error
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            "no scores in this file", where=str(path), fix='expected {"metrics": {name: number}}, all finite'
        ) from error


def compute_front(
    results: Sequence[Result],
    x: str,
    y: str,
    *,
    more: Sequence[str] = (),
    init: Mapping[str, float] | None = None,
    reference: Sequence[float] | None = None,
    bootstrap: Bootstrap | None = None,
    series: Mapping[str, Floats] | None = None,
) -> dict[str, Any]:
    """Compute the front of two or more metrics, all maximised.

    Args:
        results: the points of one sweep.
        x: metric of the horizontal axis.
        y: metric of the vertical axis.
        more: further metrics of the front: K with the first two.
        init: mean scores of the initialisation, shown and not part of the front.
        reference: reference point of the hypervolume; by default the worst corner of the points minus 10 % of
            their range, which moves when points are added.
        bootstrap: how intervals are computed.
        series: scores (P', S', K) of other sets of models by name, such as MORL; resamples are paired with those
            of the soups where the number of samples is the same.

    Returns:
        The content of ``front.json``; see docs/soups.md.
    """
    bootstrap = bootstrap or Bootstrap()
    names = list(results[0].coefficients)
    results = sorted(results, key=lambda r: [-r.coefficients[name] for name in names])
    coefficients = np.array([[result.coefficients[name] for name in names] for result in results])
    of_front = (x, y, *more)
    num_axes = len(of_front)
    metrics = [*of_front, *(metric for metric in results[0].metrics if metric not in of_front)]
    scores = np.array([[r.scores[metric] for metric in metrics] for r in results]).transpose(0, 2, 1)  # P S K
    means = scores.mean(axis=1)
    resampled = pareto.resampled_means(scores, bootstrap.num_resamples, bootstrap.seed)  # B P K
    plane, planes = means[:, :num_axes], resampled[:, :, :num_axes]
    corner = pareto.reference_point(plane) if reference is None else np.asarray(reference, float)
    experts = expert_rows(results)
    others = {
        name: PointSet(name, given.mean(axis=1), pareto.resampled_means(given, bootstrap.num_resamples, bootstrap.seed))
        for name, given in (series or {}).items()
    }
    sets = [PointSet(SOUPS, plane, planes), *others.values()]
    if experts is not None:
        inside = coefficients[is_between(coefficients)]
        sets.append(PointSet(LINE, inside @ plane[experts], inside @ planes[:, experts], is_target=False))
    return {
        "format": FORMAT,
        "x": x,
        "y": y,
        **({"more": list(more)} if more else {}),
        "labels": {metric: written(metric) for metric in metrics},
        "checkpoints": names,
        "num_samples": int(scores.shape[1]),
        "bootstrap": asdict(bootstrap),
        "points": _points(results, metrics, means, resampled, pareto.nondominated(plane), bootstrap.level),
        "reference": corner.tolist(),
        "hypervolume": estimate(
            pareto.hypervolume(plane, corner), pareto.hypervolumes(planes, corner), bootstrap.level
        ),
        "knee": _knee(results, plane, planes, experts),
        "straight_line": _straight_line(plane, planes, coefficients, experts, corner, bootstrap.level),
        "margins": _margins(of_front, plane, planes, coefficients, experts, bootstrap.level),
        "comparison": compare(sets, bootstrap.level),
        "series": [_series(other, of_front, bootstrap.level) for other in others.values()],
        "init": None if init is None else _init(init, of_front),
    }


def expert_rows(results: Sequence[Result]) -> list[int] | None:
    """Return the row of each model alone among the points, or None if there is no straight line between them.

    There is none if one was not scored alone, with coefficients per module, or where they do not sum to one.
    """
    if any(result.modules or not sums_to_one(result.coefficients.values()) for result in results):
        return None
    rows = {result.alone: index for index, result in enumerate(results)}
    found = [rows.get(name) for name in results[0].coefficients]
    return None if None in found else [row for row in found if row is not None]


def _knee(results: Sequence[Result], plane: Floats, planes: Floats, experts: list[int] | None) -> dict[str, Any]:
    """Return the knee, and in what share of the resamples it is the knee: noise moves knees easily."""
    ends = experts if experts is not None and len(experts) == plane.shape[1] else None
    knee = pareto.knee(plane, None if ends is None else plane[ends])
    resampled = [pareto.knee(means, None if ends is None else means[ends]) for means in planes]
    return {
        "index": knee,
        "coefficients": dict(results[knee].coefficients),
        "share_of_resamples": float(np.mean(np.array(resampled) == knee)),
    }


def _series(points: PointSet, metrics: Sequence[str], level: float) -> dict[str, Any]:
    low, high = pareto.interval(points.resampled, level)
    kept = pareto.nondominated(points.means)
    return {
        "name": points.name,
        "points": [
            {
                "nondominated": bool(kept[p]),
                "metrics": {
                    metric: {"value": float(mean[k]), "low": float(low[p, k]), "high": float(high[p, k])}
                    for k, metric in enumerate(metrics)
                },
            }
            for p, mean in enumerate(points.means)
        ],
    }


def _points(
    results: Sequence[Result],
    metrics: Sequence[str],
    means: Floats,
    resampled: Floats,
    mask: np.typing.NDArray[np.bool_],
    level: float,
) -> list[dict[str, Any]]:
    low, high = pareto.interval(resampled, level)
    return [
        {
            "key": result.key,
            "coefficients": dict(result.coefficients),
            "nondominated": bool(mask[p]),
            "metrics": {
                metric: {"value": float(means[p, k]), "low": float(low[p, k]), "high": float(high[p, k])}
                for k, metric in enumerate(metrics)
            },
            **({"modules": {pattern: dict(w) for pattern, w in result.modules.items()}} if result.modules else {}),
        }
        for p, result in enumerate(results)
    ]


def _straight_line(
    plane: Floats,
    planes: Floats,
    coefficients: Floats,
    experts: list[int] | None,
    corner: Floats,
    level: float,
) -> dict[str, Any] | None:
    """Compare with the interpolated scores of the experts at the same coefficients, point for point."""
    if experts is None:
        return None
    between = is_between(coefficients)  # beyond a model there is no line to compare with
    line, lines = coefficients[between] @ plane[experts], coefficients[between] @ planes[:, experts]
    value, values = pareto.hypervolume(line, corner), pareto.hypervolumes(lines, corner)
    gain = pareto.hypervolume(plane[between], corner) - value
    return {
        "hypervolume": estimate(value, values, level),
        "gain": estimate(gain, pareto.hypervolumes(planes[:, between], corner) - values, level),
        "area": _area(plane, planes, experts, level),
        "num_below": pareto.num_below_chord(plane[between], plane[experts]) if _is_falling(plane, experts) else None,
    }


def is_between(coefficients: Floats) -> np.ndarray:
    """Say which points (P, N) lie between the models, none of which is subtracted."""
    return np.asarray((coefficients >= 0).all(axis=1))


def _is_falling(plane: Floats, experts: list[int]) -> bool:
    """Say whether there are two metrics and two experts, each the better in one."""
    if not len(experts) == plane.shape[1] == 2:
        return False
    span = plane[experts[1]] - plane[experts[0]]
    return bool(span[0] * span[1] < 0)


def _area(plane: Floats, planes: Floats, experts: list[int], level: float) -> dict[str, float] | None:
    """Return the area above the chord of two experts, or None if one of them is better in both metrics.

    None, too, where it is not sure which of them is the better in a metric: the box that the area is measured in may
    then be nothing but noise. Points are in order of the coefficient; those beyond an expert (extrapolated) have no
    chord and do not count.
    """
    if not _is_falling(plane, experts):
        return None
    first, last = experts
    span = plane[last] - plane[first]
    low, high = pareto.interval(planes[:, last] - planes[:, first], level)
    if (low * high <= 0).any():
        return None
    between = slice(first, last + 1)
    value = float(pareto.area_above_chord(plane[between], span))
    return estimate(value, pareto.area_above_chord(planes[:, between], span), level)


def _margins(
    metrics: Sequence[str],
    plane: Floats,
    planes: Floats,
    coefficients: Floats,
    experts: list[int] | None,
    level: float,
) -> dict[str, Any] | None:
    if experts is None:
        return None
    between = is_between(coefficients)
    values = pareto.margins(plane[between], coefficients[between], plane[experts])
    resampled = pareto.margins(planes[:, between], coefficients[between], planes[:, experts])
    table: dict[str, Any] = {}
    for k, metric in enumerate(metrics):
        summary = pareto.summarise_margins(values[:, k])
        table[metric] = {
            "min": estimate(summary.minimum, resampled[:, :, k].min(axis=1), level),
            "max": estimate(summary.maximum, resampled[:, :, k].max(axis=1), level),
            "num_violating": summary.num_violating,
        }
    return table


def _init(init: Mapping[str, float], metrics: Sequence[str]) -> dict[str, float]:
    for metric in metrics:
        if metric not in init:
            raise UserError(
                f"the initialisation has no score {metric!r}", where="--init", fix=did_you_mean(metric, init)
            )
    return {metric: init[metric] for metric in metrics}
