"""Laws of fronts and their indicators, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soups import pareto

POINTS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12).map(
    lambda rows: np.array(rows, float)
)
ORIGIN = np.zeros(2)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(a[k] >= b[k] for k in range(len(a))) and any(a[k] > b[k] for k in range(len(a)))


@given(POINTS)
def test_front_equals_the_quadratic_definition(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.nondominated(points).tolist() == expected


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=10).map(lambda r: np.array(r, float)))
def test_front_in_three_rewards_equals_the_quadratic_definition(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.nondominated(points).tolist() == expected


@given(POINTS, st.tuples(st.integers(-1, 4), st.integers(-1, 4)))
def test_hypervolume_counts_the_unit_cells_below_the_front(points, corner):
    cells = [
        (x, y)
        for x in range(corner[0], 9)
        for y in range(corner[1], 9)
        if any(px >= x + 1 and py >= y + 1 for px, py in points)
    ]
    assert pareto.hypervolume(points, np.array(corner, float)) == len(cells)


@given(st.lists(st.lists(st.tuples(*[st.floats(-2, 2)] * 2), min_size=4, max_size=4), min_size=1, max_size=5))
def test_hypervolumes_of_many_sets_equal_those_of_each(sets):
    stacked = np.array(sets)
    reference = np.array([-0.5, 0.25])
    one_by_one = [pareto.hypervolume(points, reference) for points in stacked]
    np.testing.assert_allclose(pareto.hypervolumes(stacked, reference), one_by_one, rtol=1e-12, atol=1e-12)


@given(POINTS, POINTS)
def test_adding_points_never_lowers_the_hypervolume(points, more):
    both = np.concatenate([points, more])
    assert pareto.hypervolume(both, ORIGIN) >= pareto.hypervolume(points, ORIGIN)


@given(POINTS, POINTS)
def test_distances_to_a_dominated_target_are_zero(points, target):
    both = np.concatenate([points, target])
    assert pareto.igd_plus(both, target) == 0
    assert pareto.additive_epsilon(both, target) <= 0


@given(POINTS, POINTS)
def test_epsilon_is_the_smallest_shift_that_covers_the_target(points, target):
    shift = pareto.additive_epsilon(points, target)
    covered = ((points[:, None] + shift) >= target[None]).all(axis=2).any(axis=0)
    assert covered.all()
    short = ((points[:, None] + shift - 0.5) >= target[None]).all(axis=2).any(axis=0)
    assert not short.all()


@given(POINTS)
def test_the_knee_is_on_the_front(points):
    assert pareto.nondominated(points)[pareto.knee(points)]


@given(st.integers(2, 9), st.integers(0, 2**16))
@settings(deadline=None)
def test_soups_on_the_straight_line_have_no_margin(num_points, seed):
    experts = np.random.default_rng(seed).normal(size=(2, 3))
    lam = np.linspace(0, 1, num_points)
    coefficients = np.stack([1 - lam, lam], axis=1)
    values = pareto.margins(coefficients @ experts, coefficients, experts)
    np.testing.assert_allclose(values, 0, atol=1e-12)
    is_falling = np.prod(experts[1, :2] - experts[0, :2]) < 0
    assert not is_falling or pareto.num_below_chord((coefficients @ experts)[:, :2], experts[:, :2]) == 0


def test_the_bootstrap_resamples_all_points_alike():
    noise = np.random.default_rng(0).normal(size=(1, 50, 1))
    scores = noise + np.array([0.0, 0.5])[:, None, None]
    means = pareto.resampled_means(scores, num_resamples=200, seed=1)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.5, atol=1e-12)
    assert means[:, 0].std() > 0.05


def test_the_bootstrap_interval_has_the_width_of_the_normal_one():
    scores = np.random.default_rng(0).normal(size=(1, 400, 1))
    low, high = pareto.interval(pareto.resampled_means(scores, num_resamples=4000, seed=0))
    expected = 2 * 1.96 * scores.std() / 20
    np.testing.assert_allclose((high - low).item(), expected, rtol=0.05)  # 4000 resamples: 2 % noise


@pytest.mark.parametrize("num_rewards", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_counts_the_unit_cells_in_more_rewards(num_rewards, seed):
    points = np.random.default_rng(seed).integers(0, 5, size=(7, num_rewards)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(5)] * num_rewards), axis=-1).reshape(-1, num_rewards)
    covered = (points[None] >= cells[:, None] + 1).all(axis=2).any(axis=1)
    origin = np.zeros(num_rewards)
    assert pareto.hypervolume(points, origin) == covered.sum()
    assert pareto._volume(points[(points > 0).all(axis=1)]) == covered.sum()
    assert pareto.hypervolumes(np.stack([points, points[::-1]]), origin).tolist() == [covered.sum()] * 2


def test_the_knee_of_three_rewards_is_farthest_above_the_plane_of_the_experts():
    experts = np.eye(3)
    points = np.concatenate([experts, [[0.3, 0.3, 0.3], [0.5, 0.5, 0.2], [0.45, 0.3, 0.3]]])
    assert pareto.knee(points, experts) == 4
    np.testing.assert_allclose(pareto.heights(points, experts), (points.sum(axis=1) - 1) / 3**0.5, atol=1e-12)
