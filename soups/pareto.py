"""Fronts and their quality, in numpy: every reward is maximised; subtract from zero what is a loss.

Shapes: P points, K rewards, S samples, B bootstrap resamples, N experts. A set of points is an array (P, K).
Definitions: hypervolume (Zitzler and Thiele 1999), IGD+ (Ishibuchi et al. 2015), additive epsilon (Zitzler et
al. 2003), linear-connectivity margins (working hypothesis 1 of Rame et al. 2023, arXiv:2306.04488).
"""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nondominated(points: Floats) -> NDArray[np.bool_]:
    """Return the mask (P,) of points that no other point dominates; equal points are all kept.

    a dominates b if a is at least b in every reward and above it in one.
    """
    at_least = (points[:, None, :] >= points[None, :, :]).all(axis=2)
    above = (points[:, None, :] > points[None, :, :]).any(axis=2)
    return np.logical_not((at_least & above).any(axis=0))


def reference_point(points: Floats, margin: float = 0.1) -> Floats:
    """Return the worst corner (K,) of the points, minus a fraction of their range so that extremes count."""
    worst, best = points.min(axis=0), points.max(axis=0)
    return worst - margin * (best - worst)


def hypervolume(points: Floats, reference: Floats) -> float:
    """Return the volume that the points (P, K) dominate above the reference (K,); higher is better.

    Exact: a sweep for two rewards; for more, slices along the last one (While et al. 2006), whose time grows
    fast with K: seconds for 300 points of four rewards. Where moocore is installed, it is used for more than two.
    """
    above = points[(points > reference).all(axis=1)] - reference
    above = above[nondominated(above)]
    if points.shape[1] > 2 and find_spec("moocore") is not None:
        import moocore  # pyright: ignore[reportMissingImports] - an extra

        return float(moocore.hypervolume(above, ref=np.zeros(points.shape[1]), maximise=True)) if len(above) else 0.0
    return _volume(above)


def _volume(points: Floats) -> float:
    """Return the volume between the origin and points (P, K) that are all positive."""
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    if points.shape[1] == 2:
        return float(_areas(points[None], np.zeros(2))[0])
    points = points[np.argsort(-points[:, -1], kind="stable")]
    floors = np.append(points[1:, -1], 0.0)
    total = 0.0
    for count, depth in enumerate(points[:, -1] - floors, start=1):
        if depth > 0:
            slab = points[:count, :-1]
            total += float(depth) * _volume(slab[nondominated(slab)])
    return total


def hypervolumes(sets: Floats, reference: Floats) -> Floats:
    """Return the hypervolume (B,) of each of B sets (B, P, K) of points; see `hypervolume`."""
    if sets.shape[2] == 2:
        return _areas(sets, reference)
    return np.array([hypervolume(points, reference) for points in sets])


def _areas(sets: Floats, reference: Floats) -> Floats:
    excess = np.maximum(sets - reference, 0.0)
    order = np.argsort(-excess[:, :, 0], axis=1, kind="stable")
    excess = np.take_along_axis(excess, order[:, :, None], axis=1)  # x falls, so the envelope of y rises
    height = np.maximum.accumulate(excess[:, :, 1], axis=1)
    steps = np.diff(height, axis=1, prepend=0.0)
    return (excess[:, :, 0] * steps).sum(axis=1)


def igd_plus(points: Floats, target: Floats) -> float:
    """Return the mean distance from each target point to what the points miss of it; lower is better."""
    shortfall = np.maximum(target[:, None, :] - points[None, :, :], 0.0)
    return float(np.sqrt((shortfall**2).sum(axis=2)).min(axis=1).mean())


def additive_epsilon(points: Floats, target: Floats) -> float:
    """Return the smallest shift of the points that makes them weakly dominate the target; lower is better."""
    return float((target[:, None, :] - points[None, :, :]).max(axis=2).min(axis=1).max())


def normalise(points: Floats, box: Floats) -> Floats:
    """Map points to the unit box spanned by ``box`` (P', K); a reward that is constant in it maps to zero."""
    worst, span = box.min(axis=0), np.ptp(box, axis=0)
    return (points - worst) / np.where(span > 0, span, 1.0)


def evenly_spaced(num_points: int, count: int) -> NDArray[np.intp]:
    """Return the indices (count,) of points evenly spaced among ``num_points``.

    Of three or more the first and the last are among them; one or two, which would be ends only, lie between.
    """
    if count < min(3, num_points):
        return np.round((np.arange(count) + 0.5) / count * (num_points - 1)).astype(np.intp)
    return np.round(np.linspace(0, num_points - 1, min(count, num_points))).astype(np.intp)


def knee(points: Floats, ends: Floats | None = None) -> int:
    """Return the index of the non-dominated point (P, K) farthest above a chord, in the box of the points.

    Args:
        points: rewards of the soups.
        ends: the ends (2, 2) of the chord: the experts; by default the best point in each reward. With more than
            two rewards, the corners (K, K) of a plane.
    """
    front = np.flatnonzero(nondominated(points))
    if ends is None:
        ends = points[front[points[front].argmax(axis=0)]]
    above = heights(normalise(points[front], points), normalise(ends, points))
    return int(front[above.argmax()])


def heights(points: Floats, corners: Floats) -> Floats:
    """Return the signed distance (P,) of points (P, K) to the line or plane through K corners (K, K).

    Positive where all rewards grow. If the corners span none that all rewards cross, as when one is the better in both,
    its normal is the diagonal: neither the order of the rewards nor that of the corners counts.
    """
    *_, rows = np.linalg.svd(corners[1:] - corners[0])
    normal = rows[-1] * (1.0 if rows[-1].sum() >= 0 else -1.0)
    if (normal <= 0).any():
        normal = np.full(points.shape[1], points.shape[1] ** -0.5)
    return (points - corners[0]) @ normal


@dataclass(frozen=True)
class Margins:
    """Margins of one reward over all soups: soup minus straight line, as a fraction of the span."""

    minimum: float
    maximum: float
    num_violating: int


def margins(points: Floats, coefficients: Floats, experts: Floats) -> Floats:
    """Return the margins (..., P, K) of the rewards of soups over the interpolated rewards of the experts.

    Args:
        points: rewards of the soups (..., P, K).
        coefficients: of each soup (P, N).
        experts: rewards of the experts (..., N, K).

    The margin is divided by the range of the reward among the experts; where they are equal, by one.
    """
    span = np.ptp(experts, axis=-2, keepdims=True)
    return (points - coefficients @ experts) / np.where(span > 0, span, 1.0)


def summarise_margins(values: Floats, tolerance: float = 1e-9) -> Margins:
    """Summarise the margins (P,) of one reward; rounding errors below the tolerance do not violate."""
    return Margins(float(values.min()), float(values.max()), int((values < -tolerance).sum()))


def num_below_chord(points: Floats, ends: Floats, tolerance: float = 1e-9) -> int:
    """Count the points (P, 2) below the straight line between the two experts (2, 2), which must fall."""
    box = np.concatenate([points, ends])
    return int((heights(normalise(points, box), normalise(ends, box)) < -tolerance).sum())


def area_above_chord(curves: Floats, span: Floats) -> Floats:
    """Return the signed area (...) between curves (..., P, 2) and the chords from their first to their last point.

    The curve runs straight from point to point: what lies between two neighbours is had by using either model at
    random, as the chord is had by using either expert. So unlike hypervolumes of points, areas do not depend on how
    evenly the points are spaced. Positive above the chord.

    Args:
        curves: points in order of the coefficient.
        span: the extent (2,) of the chord in each reward; the area is a share of the box that it spans, so that the
            best possible corner gives one half.
    """
    x, y = (curves - curves[..., :1, :])[..., 0], (curves - curves[..., :1, :])[..., 1]
    doubled = (x[..., :-1] * y[..., 1:] - x[..., 1:] * y[..., :-1]).sum(-1)  # the last side leads back to the origin
    return doubled / 2 / -(span[0] * abs(span[1]))


def resampled_means(scores: Floats, num_resamples: int = 1000, seed: int = 0) -> Floats:
    """Return the mean scores (B, P, K) of bootstrap resamples of the samples of ``scores`` (P, S, K).

    The bootstrap is paired: every point is averaged over the same resample, so that what is common to all
    points (easy and hard samples) does not blur their differences.
    """
    num_points, num_samples, num_rewards = scores.shape
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(num_samples, np.full(num_samples, 1 / num_samples), size=num_resamples)
    table = scores.transpose(1, 0, 2).reshape(num_samples, -1)
    return (counts / num_samples @ table).reshape(num_resamples, num_points, num_rewards)


def interval(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the percentile interval over the first axis (B, ...), as two arrays (...)."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high
