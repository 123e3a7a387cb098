import math

import numpy as np
import pytest

from unival.errors import UserError
from unival.metrics.bootstrap import bootstrap_difference, bootstrap_mean


def test_interval_agrees_with_the_normal_one_on_many_samples() -> None:
    scores = np.random.default_rng(1).normal(size=2000)
    half_width = 1.96 * scores.std() / math.sqrt(len(scores))
    interval = bootstrap_mean(scores)
    assert interval.mean == pytest.approx(scores.mean(), abs=1e-15)
    # 10 % of the half width: the bounds of 2,000 resamples have a standard error of 3 %.
    assert interval.low == pytest.approx(scores.mean() - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(scores.mean() + half_width, abs=0.1 * half_width)


def test_pairing_removes_what_two_systems_share() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(size=500)
    scores, baseline = difficulty + 0.1 + 0.1 * rng.normal(size=500), difficulty
    interval = bootstrap_difference(scores, baseline)
    assert interval.mean == pytest.approx(0.1, abs=0.02)
    assert interval.low > 0
    assert interval.high - interval.low < 0.03
    alone = bootstrap_mean(scores)
    assert alone.high - alone.low > 0.1


def test_seed_decides_the_interval() -> None:
    scores = np.random.default_rng(3).random(50)
    assert bootstrap_mean(scores, seed=5) == bootstrap_mean(scores, seed=5)
    assert bootstrap_mean(scores, seed=5) != bootstrap_mean(scores, seed=6)


def test_more_confidence_is_wider() -> None:
    scores = np.random.default_rng(4).random(50)
    narrow, wide = bootstrap_mean(scores, confidence=0.5), bootstrap_mean(scores, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize("scores", [[], [[1.0]], [1.0, float("nan")]])
def test_scores_must_be_a_finite_non_empty_vector(scores: list[float]) -> None:
    with pytest.raises(UserError):
        bootstrap_mean(scores)


def test_parameters_are_checked() -> None:
    with pytest.raises(UserError, match="confidence is 95"):
        bootstrap_mean([1.0], confidence=95)
    with pytest.raises(UserError, match="num_resamples is 0"):
        bootstrap_mean([1.0], num_resamples=0)
    with pytest.raises(UserError, match="2 scores but 1"):
        bootstrap_difference([1.0, 2.0], [1.0])
