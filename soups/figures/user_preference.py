"""What a user gets, as a function of how much the second metric counts, under several ways to choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from soups.errors import UserError
from soups.figures import Inputs
from soups.figures.spec import GRADIENT, GREY, INK, PALETTE, Curve, Figure, Mark, Plane, share_of
from soups.front import choose_metrics, expert_rows
from soups.metric_names import written
from soups.pareto import Floats

FIXED = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_PREFERENCES = 21
NUM_FOLDS = 5


def figure(inputs: Inputs) -> Figure:
    """Draw a line per policy over the preference; metrics are 0 for the worst expert and 1 for the best (or init)."""
    results = sorted(inputs.plain(), key=share_of)
    x, y = choose_metrics(results, inputs.x, inputs.y)
    shares = np.array([share_of(result) for result in results])
    if len(results[0].coefficients) != 2 or len(results) < 3:
        raise UserError("this figure needs a sweep of two models", where="SWEEPS", fix="sweep at least 3 points")
    scores = np.array([[r.scores[x], r.scores[y]] for r in results]).transpose(0, 2, 1)
    experts = expert_rows(results)
    if experts is None:
        raise UserError("this figure needs both models alone", where="SWEEPS", fix="sweep with --points")
    means = scores.mean(axis=1)
    worst, best = means[experts].min(axis=0), means[experts].max(axis=0)
    init = None if inputs.init is None else np.array([inputs.init[x], inputs.init[y]])
    is_unit = init is not None and bool((init > worst).all())  # an init below the experts is no unit: it turns the axis
    if init is not None and is_unit:
        best = init
    scale = np.where(best != worst, best - worst, 1.0)
    scores, means = (scores - worst) / scale, (means - worst) / scale
    # The last model is the specialist of y when it has the better y; else a preference for y means the first.
    grows = means[experts[1], 1] >= means[experts[0], 1]

    def at(share: float) -> Callable[[Floats], float]:
        row = int(np.abs(shares - share).argmin())
        return lambda weights: float(means[row] @ weights)

    def matched(weights: Floats) -> float:
        return at(weights[1] if grows else weights[0])(weights)

    measured = [float(shares[np.abs(shares - share).argmin()]) for share in FIXED if _near(shares, share)]
    curves = [_curve(f"coefficient {share:.3g}", at(share), _mixed(share), "thin") for share in measured]
    curves.append(_curve("coefficient = preference", matched, GREY, "dashed"))
    if scores.shape[1] > 1:
        curves.append(_curve("cross-validated", lambda weights: _cross_validated(scores, weights), INK, "solid"))
    for index, (name, given) in enumerate(inputs.series.items()):
        rows = (given.mean(axis=1) - worst) / scale
        colour = PALETTE[index % len(PALETTE)]
        curves.append(_curve(f"{name}, trained for it", _nearest_training(rows), colour, "solid"))
    unit = "0: worst model, 1: init" if is_unit else "0: worst model, 1: best model"
    plane = Plane(f"preference for {written(y)} over {written(x)}", f"preferred score ({unit})", curves)
    caption = "Cross-validated: chosen on four fifths of the samples, scored on the others."
    return Figure("What a user gets", [plane], caption if scores.shape[1] > 1 else "")


def _near(shares: Floats, share: float) -> bool:
    return bool(np.abs(shares - share).min() < 0.051)


def _mixed(share: float) -> str:
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in GRADIENT]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


def _curve(name: str, utility: Callable[[Floats], float], colour: str, line: str) -> Curve:
    grid = np.linspace(0, 1, NUM_PREFERENCES)
    marks = [Mark(float(m), utility(np.array([1 - m, m])), details={name: {"preference": f"{m:.2g}"}}) for m in grid]
    return Curve(name, marks, colour, line=line, marker="none")  # type: ignore[arg-type]


def _cross_validated(scores: Floats, weights: Floats) -> float:
    utilities = scores @ weights  # (P, S)
    num_samples = utilities.shape[1]
    order = np.random.default_rng(0).permutation(num_samples)
    total = 0.0
    for fold in np.array_split(order, min(NUM_FOLDS, num_samples)):
        seen = np.setdiff1d(order, fold)
        total += float(utilities[utilities[:, seen].mean(axis=1).argmax()][fold].sum())
    return total / num_samples


def _nearest_training(rows: Floats) -> Callable[[Floats], float]:
    """Take the trainings in order of the weight on the second metric, evenly spaced."""
    grid = np.linspace(0, 1, len(rows))
    return lambda weights: float(rows[int(np.abs(grid - weights[1]).argmin())] @ weights)
