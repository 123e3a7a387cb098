"""Greedy soup: average the best model with each next one that helps (Wortsman et al. 2022, arXiv:2203.05482).

Models are tried from the best to the worst by their held-out score; one stays if the average with those kept so
far scores higher. Model soups require a strict gain; DiWA and Ratatouille also accept ties. Every trial is a
point of a sweep, so that a killed run continues, and averages are computed from the models, not from rounded
averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from soups.errors import UserError, did_you_mean
from soups.points import Point, corners
from soups.results import Result
from soups.scoring import Scorer
from soups.sweep import Sweep, run_sweep

Ties = Literal["reject", "accept"]


@dataclass(frozen=True)
class Trial:
    """One model offered to the soup: the score with it, and whether it stayed."""

    model: str
    score: float
    best_before: float | None
    kept: bool


def greedy_soup(
    sweep: Sweep,
    metric: str,
    out_dir: Path,
    *,
    ties: Ties = "reject",
    on_result: Callable[[Result, bool], None] = lambda result, is_new: None,
    num_workers: int = 1,
) -> dict[str, Any]:
    """Find the greedy soup of the checkpoints of a sweep.

    Args:
        sweep: the models and how they are scored; use held-out samples, not those of the final report.
        metric: what must grow.
        out_dir: where the scores are kept.
        ties: whether a model that changes nothing stays.
        on_result: called for each point scored.
        num_workers: processes that score the single models.

    Returns:
        ``members`` in the order in which they were kept, their equal ``coefficients``, ``score``, the score of
        the best single model, and every trial.

    Raises:
        UserError: unknown metric.
    """

    def checked(result: Result, is_new: bool) -> None:
        if metric not in result.metrics:
            raise UserError(f"unknown metric {metric!r}", where="--metric", fix=did_you_mean(metric, result.metrics))
        on_result(result, is_new)

    scorer = Scorer(sweep, out_dir)
    singles = run_sweep(sweep, corners(len(sweep.checkpoints)), out_dir, checked, num_workers, scorer)
    scores = [result.metrics[metric] for result in singles]
    # Equal scores are tried in the order of digests, so that the order on the command line changes nothing.
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], sweep.checkpoints[i].digest))
    kept, best = [order[0]], scores[order[0]]
    trials = [Trial(sweep.checkpoints[order[0]].name, best, None, True)]
    for candidate in order[1:]:
        point = uniform([*kept, candidate], len(scores))
        (result,) = run_sweep(sweep, [point], out_dir, on_result, scorer=scorer)
        score = result.metrics[metric]
        stays = score > best or (ties == "accept" and score == best)
        trials.append(Trial(sweep.checkpoints[candidate].name, score, best, stays))
        if stays:
            kept, best = [*kept, candidate], score
    return {
        "metric": metric,
        "ties": ties,
        "members": [sweep.checkpoints[index].name for index in kept],
        "coefficients": sweep.named(uniform(kept, len(scores))),
        "score": best,
        "best_single": {"model": trials[0].model, "score": trials[0].score},
        "trials": [asdict(trial) for trial in trials],
    }


def uniform(members: Sequence[int], num_models: int) -> Point:
    """Return equal coefficients for some of the models."""
    return tuple(1 / len(members) if index in members else 0.0 for index in range(num_models))
