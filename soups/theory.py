"""Closed forms of rewarded soups (Rame et al. 2023, arXiv:2306.04488, appendix), for quadratic rewards.

Reward i falls from its expert as the squared distance times a curvature. Then the soup that is best for a user
who weighs the rewards by ``preference`` follows from the rewards of the experts alone.
"""

from __future__ import annotations

import numpy as np

from soups.pareto import Floats


def best_coefficients(preference: Floats, gaps: Floats) -> Floats:
    """Return the coefficients (K,) of the experts that maximise the preferred sum of rewards.

    Exact when each reward is quadratic with the same curvature in every direction and the experts are equally
    far from each other; for two experts, when both rewards are quadratic along the segment.

    Args:
        preference: weights (K,) of the rewards, not negative.
        gaps: (K,), what each reward loses from its own expert to the others on average, not negative.

    Returns:
        ``preference * gaps`` divided by its sum; the preference itself if no reward loses anything.
    """
    pull = preference * np.maximum(gaps, 0.0)
    return pull / pull.sum() if pull.sum() > 0 else preference / preference.sum()


def regret_bound(preference: float | Floats, gap_1: float, gap_2: float, ratio: float) -> float | Floats:
    """Return a bound on what the best soup of two experts loses against the best weights of all.

    Args:
        preference: weight of the second reward, in [0, 1].
        gap_1: what the first reward loses from its expert to the other expert.
        gap_2: the same of the second reward.
        ratio: the largest ratio, at least 1, between the matching curvatures of the two rewards, both ways,
            where curvatures are diagonal.
    """
    mixed = preference * (1 - preference)
    spread = (ratio * gap_1 - gap_2) * (ratio * gap_2 - gap_1)
    return mixed**2 * spread / ((mixed * (ratio - 1) ** 2 + ratio) * ((1 - preference) * gap_1 + preference * gap_2))
