"""What happens to the scores between two models: barriers, gains, and how differently the ends err."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from soups import pareto
from soups.compare import estimate
from soups.front import Bootstrap
from soups.pareto import Floats
from soups.results import Result

OUTPUT_KEYS = ("output", "prediction", "answer", "caption", "text")


def paths(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Return the results on each segment between two models, named ``first|second``, from first to second.

    A segment needs both models alone and one point between them; points beyond the ends, and those with other
    coefficients in some modules, are left out.
    """
    names = list(results[0].coefficients) if results else []
    found: dict[str, list[Result]] = {}
    for first, second in combinations(names, 2):
        on_it = [r for r in results if r.is_plain and _is_between(r.coefficients, first, second)]
        on_it.sort(key=lambda r: r.coefficients[second])
        if len(on_it) > 2 and (on_it[0].alone, on_it[-1].alone) == (first, second):
            found[f"{first}|{second}"] = on_it
    return found


def _is_between(coefficients: Mapping[str, float], first: str, second: str) -> bool:
    outside = any(weight != 0 for name, weight in coefficients.items() if name not in (first, second))
    return not outside and 0 <= coefficients[first] <= 1 and abs(coefficients[first] + coefficients[second] - 1) < 1e-9


def barriers(path: Sequence[Result], bootstrap: Bootstrap | None = None) -> dict[str, dict[str, Any]]:
    """Return by metric how much the scores dip below the ends on the way from one model to the other.

    ``chord``: the largest dip below the straight line between the ends (Entezari et al. 2022), never negative.
    ``mean_of_ends``: the largest dip below the mean of the two ends (Frankle et al. 2020). ``gain``: the largest
    rise above the straight line. Scores are rewards: a barrier of a loss is that of its negative.
    """
    bootstrap = bootstrap or Bootstrap()
    names = [name for name in path[0].coefficients if path[0].coefficients[name] or path[-1].coefficients[name]]
    share = np.array([result.coefficients[names[-1]] for result in path])
    metrics = list(path[0].metrics)
    scores = np.array([[r.scores[metric] for metric in metrics] for r in path]).transpose(0, 2, 1)
    means = scores.mean(axis=1)
    draws = pareto.resampled_means(scores, bootstrap.num_resamples, bootstrap.seed)
    table: dict[str, dict[str, Any]] = {}
    for k, metric in enumerate(metrics):
        value, values = _dips(means[None, :, k], share), _dips(draws[:, :, k], share)
        table[metric] = {name: estimate(value[name][0], values[name], bootstrap.level) for name in value}
        table[metric]["grid"] = share.tolist()
    return table


def _dips(means: Floats, share: Floats) -> dict[str, Floats]:
    """Return the three numbers (B,) of means (B, P)."""
    first, last = means[:, :1], means[:, -1:]
    chord = first * (1 - share) + last * share
    above = means - chord
    above[:, [0, -1]] = 0.0  # the ends are on the line, whatever rounding says
    ends = (first[:, 0] + last[:, 0]) / 2
    return {"chord": (0.0 - above).max(axis=1), "mean_of_ends": ends - means.min(axis=1), "gain": above.max(axis=1)}


def disagreement(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Return, for each pair of models scored alone, how differently they do on the same samples.

    By metric: ``mean_difference`` of the scores of a sample and their ``correlation``; for scores that are all
    0 or 1 also ``one_wrong`` and ``both_wrong`` (shares of the samples), their ``ratio`` (the ratio error of
    Aksela 2003: high is diverse) and Yule's ``q`` (low is diverse). ``outputs``: the share of the stored
    examples whose output differs.
    """
    alone = {result.alone: result for result in results if result.alone is not None}
    return {
        f"{a}|{b}": {
            "metrics": {m: _differences(np.array(alone[a].scores[m]), np.array(alone[b].scores[m])) for m in metrics},
            "outputs": _outputs_differ(alone[a], alone[b]),
        }
        for a, b in combinations(alone, 2)
        for metrics in [list(alone[a].metrics)]
    }


def _differences(first: Floats, second: Floats) -> dict[str, float | None]:
    spread = float(first.std() * second.std())
    row: dict[str, float | None] = {
        "mean_difference": float(np.abs(first - second).mean()),
        "correlation": float(((first - first.mean()) * (second - second.mean())).mean() / spread) if spread else None,
    }
    if not np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        return row
    both_right = float((first * second).mean())
    both_wrong = float(((1 - first) * (1 - second)).mean())
    first_only, second_only = float((first * (1 - second)).mean()), float((second * (1 - first)).mean())
    concordant, discordant = both_right * both_wrong, first_only * second_only
    row |= {
        "one_wrong": first_only + second_only,
        "both_wrong": both_wrong,
        "ratio": (first_only + second_only) / both_wrong if both_wrong else None,
        "q": (concordant - discordant) / (concordant + discordant) if concordant + discordant else None,
    }
    return row


def _outputs_differ(first: Result, second: Result) -> dict[str, float | int] | None:
    key = next((key for key in OUTPUT_KEYS if first.samples and key in first.samples[0]), None)
    if key is None or len(first.samples) != len(second.samples):
        return None
    differ = [a.get(key) != b.get(key) for a, b in zip(first.samples, second.samples, strict=True)]
    return {"num_samples": len(differ), "share": sum(differ) / len(differ)}
