"""What the scores say: fronts, the two working hypotheses of rewarded soups, merges out of distribution, barriers.

Every number is a `Quantity`: its value and its resamples, which draw samples (the same ones for every model, so that
differences are paired). Over several seeds the interval covers samples and seeds; with one seed it covers samples
only. Definitions are those of `soups.pareto`; every reward is maximised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from soups import pareto
from soups.compare import estimate
from soups.pareto import Floats

LEVEL = 0.95
REPEATS = 50  # draws of the seeds for each of the samples: the tails of t with two degrees of freedom are long
MARGIN = (
    0.1  # of the box, below its worst corner: the ends of a front count (section 10.1 of the notes on Pareto metrics)
)
SOUPS, MORL, ENSEMBLE, LINE = "soups", "MORL", "prediction ensemble", "straight line"


@dataclass(frozen=True)
class Quantity:
    """A number with its resamples (B,); ``least`` is the smallest that it can be, as 0 of a distance."""

    value: float
    draws: Floats
    least: float = -np.inf

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.value - other.value, self.draws - other.draws)

    def described(self) -> dict[str, float]:
        """Return the value with its interval."""
        return estimate(self.value, self.draws, LEVEL)


def over_seeds(quantities: Sequence[Quantity], seed: int = 0) -> dict[str, Any]:
    """Return the mean over seeds with its interval, and the value of each seed when there are several.

    The spread of the seeds enters by Student's t: a resample of three seeds never leaves their range, so that its
    interval misses the mean of all seeds in a quarter of the cases.
    """
    if len(quantities) == 1:
        return quantities[0].described()
    values = [quantity.value for quantity in quantities]
    means = np.tile(np.mean([quantity.draws for quantity in quantities], axis=0), REPEATS)
    error = np.std(values, ddof=1) / len(values) ** 0.5
    means = means + error * np.random.default_rng(seed).standard_t(len(values) - 1, size=len(means))
    means = means.clip(min=quantities[0].least)  # Student's t knows no bounds
    return estimate(float(np.mean(values)), means, LEVEL) | {"per_seed": values}


def verdict(interval: Mapping[str, float], tolerance: float = 1e-12) -> str:
    """Say what an interval of a difference shows."""
    if interval["low"] > tolerance:
        return "supported"
    return "contradicted" if interval["high"] < -tolerance else "undecided"


def mean_quantity(scores: Sequence[float] | Floats, num_resamples: int) -> Quantity:
    """Return the mean of per-sample scores (N,)."""
    table = np.asarray(scores, float)[None, :, None]
    return Quantity(float(table.mean()), pareto.resampled_means(table, num_resamples)[:, 0, 0])


@dataclass(frozen=True)
class Trade:
    """The scores of one pair of specialists under one seed.

    Attributes:
        coefficients: of the soups (P, 2).
        soups: scores (P, N, 2), from the first specialist to the second; both ends are there.
        others: scores (M, N, 2) of other sets of models in the same order, such as MORL; ends included.
    """

    coefficients: Floats
    soups: Floats
    others: Mapping[str, Floats] = field(default_factory=dict)


def trade_quantities(trade: Trade, num_resamples: int, num_trainings: int = 2) -> dict[str, Quantity]:
    """Return everything that is measured of one pair, by name.

    Hypervolume, IGD+ and the area above the chord are in the box of all models, in every resample its own, the
    reference 10 % below its worst corner. `equal` is with as many soups as MORL has points; `cost` lets MORL have as
    many trainings as the soups needed, the best ones in hindsight.
    """
    sets = {SOUPS: trade.soups, **trade.others}
    means = _boxed({name: scores.mean(axis=1) for name, scores in sets.items()})
    draws = _boxed({name: pareto.resampled_means(scores, num_resamples) for name, scores in sets.items()})
    line, lines = _line(trade.coefficients, means[SOUPS]), _line(trade.coefficients, draws[SOUPS])
    target = Target(list(means.values()), list(draws.values()))
    found = _front_quantities(SOUPS, means[SOUPS], draws[SOUPS], target)
    found |= _front_quantities(LINE, line, lines, target)
    found["gain over the line"] = found[f"hypervolume/{SOUPS}"] - found[f"hypervolume/{LINE}"]
    side = np.array([1.0 if means[SOUPS][-1, 0] >= means[SOUPS][0, 0] else -1.0, 1.0])
    areas = [pareto.area_above_chord(points, side) for points in (means[SOUPS], draws[SOUPS])]
    found["area above the chord"] = Quantity(float(areas[0]), areas[1])
    for name in trade.others:
        found |= _front_quantities(name, means[name], draws[name], target)
        count = min(len(means[name]), len(means[SOUPS]))
        for kept in (SOUPS, name):
            chosen = pareto.evenly_spaced(len(means[kept]), count)
            found |= _front_quantities(f"{kept}, {count} points", means[kept][chosen], draws[kept][:, chosen], target)
        found |= _lead(found, f"equal points/{name}", f"{SOUPS}, {count} points", f"{name}, {count} points")
    if MORL in trade.others:
        best = best_subset(means[MORL], num_trainings)
        label = f"{MORL}, best {len(best)} trainings"
        found |= _front_quantities(label, means[MORL][best], draws[MORL][:, best], target)
        found |= _lead(found, f"equal cost/{MORL}", SOUPS, label)
    return found | _margin_quantities(trade.coefficients, means[SOUPS], draws[SOUPS])


def _boxed(sets: Mapping[str, Floats]) -> dict[str, Floats]:
    """Map sets of points (..., P, K) to the box of all of them, every resample to its own.

    Easy samples raise all models alike, often by more than models differ; in a fixed box that would count as volume.
    """
    every = np.concatenate(list(sets.values()), axis=-2)
    worst, span = every.min(axis=-2, keepdims=True), np.ptp(every, axis=-2, keepdims=True)
    return {name: (points - worst) / np.where(span > 0, span, 1.0) for name, points in sets.items()}


def _lead(found: Mapping[str, Quantity], name: str, first: str, second: str) -> dict[str, Quantity]:
    """Return by how much the first set is ahead of the second: in hypervolume, and in IGD+ (where less is better)."""
    return {
        f"{name}/hypervolume": found[f"hypervolume/{first}"] - found[f"hypervolume/{second}"],
        f"{name}/igd_plus": found[f"igd_plus/{second}"] - found[f"igd_plus/{first}"],
    }


def best_subset(points: Floats, count: int) -> list[int]:
    """Return the indices of the `count` points with the largest hypervolume."""
    corner = np.full(points.shape[1], -MARGIN)
    options = combinations(range(len(points)), min(count, len(points)))
    return list(max(options, key=lambda chosen: pareto.hypervolume(points[list(chosen)], corner)))


class Target:
    """The non-dominated union of all sets, of the means and of every resample: what IGD+ is measured against."""

    def __init__(self, means: Sequence[Floats], draws: Sequence[Floats]) -> None:
        self.mean = _front(np.concatenate(means))
        every = np.concatenate(draws, axis=1)
        self.draws = [_front(points) for points in every]

    def igd_plus(self, points: Floats, draws: Floats) -> Quantity:
        """Return the distance of a set of points from it."""
        values = [pareto.igd_plus(one, target) for one, target in zip(draws, self.draws, strict=True)]
        return Quantity(pareto.igd_plus(points, self.mean), np.array(values), least=0.0)


def _front(points: Floats) -> Floats:
    """Return what no other point dominates, each once: the ends belong to several sets."""
    return np.unique(points[pareto.nondominated(points)], axis=0)


def _line(coefficients: Floats, soups: Floats) -> Floats:
    """Return the interpolated scores of the two ends (..., P, 2)."""
    return coefficients @ soups[..., [0, -1], :]


def _front_quantities(name: str, points: Floats, draws: Floats, target: Target) -> dict[str, Quantity]:
    corner = np.full(points.shape[1], -MARGIN)
    return {
        f"hypervolume/{name}": Quantity(
            pareto.hypervolume(points, corner), pareto.hypervolumes(draws, corner), least=0.0
        ),
        f"igd_plus/{name}": target.igd_plus(points, draws),
    }


def _margin_quantities(coefficients: Floats, points: Floats, draws: Floats) -> dict[str, Quantity]:
    """Return the smallest and the mean margin over the line inside of the segment, by axis (0 and 1)."""
    ends = [0, len(points) - 1]
    value = pareto.margins(points, coefficients, points[ends])[1:-1]  # P-2 2
    spread = pareto.margins(draws, coefficients, draws[:, ends])[:, 1:-1]
    found = {}
    for axis in (0, 1):
        found[f"smallest margin/{axis}"] = Quantity(float(value[:, axis].min()), spread[:, :, axis].min(axis=1))
        found[f"mean margin/{axis}"] = Quantity(float(value[:, axis].mean()), spread[:, :, axis].mean(axis=1))
    return found


def barrier_quantities(coefficients: Floats, scores: Floats, num_resamples: int) -> dict[str, Quantity]:
    """Return the barrier and the gain of a path: how far scores (P, N) fall below, or rise above, the straight line."""
    table = scores[:, :, None]
    mean, draws = table.mean(axis=1), pareto.resampled_means(table, num_resamples)
    below = _line(coefficients, mean) - mean
    falls = _line(coefficients, draws) - draws
    return {
        "barrier": Quantity(float(below.max()), falls[:, :, 0].max(axis=1), least=0.0),
        "gain": Quantity(float((-below).max()), (-falls[:, :, 0]).max(axis=1), least=0.0),
        "ends": Quantity(float(mean[[0, -1]].mean()), draws[:, [0, -1], 0].mean(axis=1)),
    }


def over_best(model: Quantity, singles: Sequence[Quantity]) -> Quantity:
    """Return a model minus the best of others, which is chosen anew in every resample.

    The maximum of noisy means is too large on average, so the difference is on the careful side.
    """
    best = np.array([single.draws for single in singles]).max(axis=0)
    return Quantity(model.value - max(single.value for single in singles), model.draws - best)
