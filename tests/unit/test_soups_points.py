from __future__ import annotations

from math import comb

import pytest

from soups.errors import UserError
from soups.points import explicit, grid, lattice, segment


def test_the_segment_has_exact_ends_and_decimal_steps():
    points = segment()
    assert len(points) == 11
    assert (points[0], points[3], points[-1]) == ((1.0, 0.0), (0.7, 0.3), (0.0, 1.0))


@pytest.mark.parametrize(("num_models", "divisions", "size"), [(3, 10, 66), (4, 10, 286), (5, 5, 126), (2, 10, 11)])
def test_lattice_sizes(num_models, divisions, size):
    points = lattice(num_models, divisions)
    assert len(points) == len(set(points)) == size == comb(divisions + num_models - 1, num_models - 1)
    assert all(abs(sum(point) - 1) < 1e-12 for point in points)
    assert all(tuple(float(i == j) for j in range(num_models)) in points for i in range(num_models))


def test_the_grid_has_the_asked_number_of_points_on_each_edge():
    assert grid(1) == [(1.0,)]
    assert grid(2, 5) == segment(5)
    assert grid(3, 11) == lattice(3, 10)


def test_explicit_points_are_checked_and_deduplicated():
    assert explicit([(0.5, 0.5), (1, -0.0), (0.5, 0.5)], 2) == [(0.5, 0.5), (1.0, 0.0)]
    with pytest.raises(UserError, match="1 weight for 2 models"):
        explicit([(0.5,)], 2)
    with pytest.raises(UserError, match="finite"):
        explicit([(float("inf"), 0.0)], 2)


@pytest.mark.parametrize("num_points", [1, 0, -3])
def test_a_segment_of_one_point_is_refused(num_points):
    with pytest.raises(UserError, match="at least 2"):
        segment(num_points)
