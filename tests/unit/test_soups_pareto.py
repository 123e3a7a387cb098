"""Indicators of published curves (rewarded soups, arXiv:2306.04488) against numbers computed elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from soups import pareto

CURVES = json.loads(Path(__file__).with_name("soups_curves.json").read_text())
# Coordinates have four decimals. The captioning rewards span .026 and .006, so that rounding moves a
# normalised coordinate by up to .008, while the expected values were computed before rounding.
TOLERANCE = {"news": 2e-4, "reddit": 2e-4, "captioning": 3e-3}
ORIGIN = np.zeros(2)


@pytest.fixture(params=TOLERANCE)
def curve(request):
    table = CURVES[request.param]
    rs, morl = np.array(table["rs"]), np.array(table["morl"])
    box = np.concatenate([rs, morl])
    sets = [pareto.normalise(points, box) for points in (rs, rs[::2], morl)]
    union = pareto.normalise(box, box)
    return table["expected"], TOLERANCE[request.param], rs, sets, union[pareto.nondominated(union)]


def test_hypervolumes_of_published_curves(curve):
    expected, tolerance, _, sets, _ = curve
    wanted = [expected["hv_rs21"], expected["hv_rs11"], expected["hv_morl"]]
    assert [pareto.hypervolume(points, ORIGIN) for points in sets] == pytest.approx(wanted, abs=tolerance)
    assert [pareto.hypervolumes(points[None], ORIGIN)[0] for points in sets] == pytest.approx(wanted, abs=tolerance)


def test_distances_of_published_curves(curve):
    expected, tolerance, _, sets, front = curve
    igd = [pareto.igd_plus(points, front) for points in sets]
    assert igd == pytest.approx(expected["igd"], abs=tolerance)
    epsilon = [pareto.additive_epsilon(points, front) for points in (sets[0], sets[2])]
    assert epsilon == pytest.approx(expected["eps"], abs=tolerance)


@pytest.mark.parametrize("name", TOLERANCE)
def test_margins_chord_and_knee_of_published_curves(name):
    expected, rs = CURVES[name]["expected"], np.array(CURVES[name]["rs"])
    ends = rs[[0, -1]]
    lam = np.linspace(0, 1, len(rs))
    margins = pareto.margins(rs, np.stack([1 - lam, lam], axis=1), ends)
    rows = [pareto.summarise_margins(margins[:, k]) for k in (0, 1)]
    if "margin_min" in expected:
        assert [row.minimum for row in rows] == pytest.approx(expected["margin_min"], abs=5e-4)
        assert [row.maximum for row in rows] == pytest.approx(expected["margin_max"], abs=5e-4)
        assert [row.num_violating for row in rows] == expected["violating"]
    else:
        assert [row.num_violating for row in rows] == [0, 0]
    assert pareto.num_below_chord(rs, ends) == expected["below_chord"]
    if "knee" in expected:
        assert pareto.knee(rs, ends) == expected["knee"]


def test_equal_points_are_all_kept():
    assert pareto.nondominated(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 1.0]])).tolist() == [True, True, False]


def test_the_default_reference_is_a_tenth_below_the_worst_corner():
    points = np.array([[0.0, 10.0], [1.0, 20.0]])
    assert pareto.reference_point(points).tolist() == pytest.approx([-0.1, 9.0])


def test_points_below_the_reference_add_nothing():
    points = np.array([[2.0, 3.0], [-1.0, 9.0], [9.0, -1.0]])
    assert pareto.hypervolume(points, ORIGIN) == 6.0


def test_a_constant_reward_has_finite_margins():
    points = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    coefficients = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert pareto.margins(points, coefficients, points[[0, -1]]).tolist() == [[0, 0]] * 3


def test_the_hypervolume_of_one_soup_by_hand():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.5, 1.5]])
    assert pareto.hypervolume(points, ORIGIN) == 6.0


def test_area_above_the_chord_of_a_quarter_circle_and_of_its_mirror_image():
    angles = np.linspace(0, np.pi / 2, 400)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # from (1, 0) to (0, 1), through the good corner
    expected = np.pi / 4 - 0.5
    assert pareto.area_above_chord(arc, arc[-1] - arc[0]) == pytest.approx(expected, abs=1e-4)
    assert pareto.area_above_chord(arc[::-1], arc[0] - arc[-1]) == pytest.approx(expected, abs=1e-4)
    hollow = 1 - arc[::-1]  # the same ends, below the chord
    assert pareto.area_above_chord(hollow, hollow[-1] - hollow[0]) == pytest.approx(-expected, abs=1e-4)


def test_area_above_the_chord_knows_neither_units_nor_spacing():
    dense = np.array([[0.0, 3.0], [0.2, 2.9], [0.21, 2.89], [0.7, 2.0], [1.0, 0.5]])
    sparse = np.insert(dense, 3, (dense[2] + dense[3]) / 2, axis=0)  # one more point of the same curve
    area = pareto.area_above_chord(dense, dense[-1] - dense[0])
    assert pareto.area_above_chord(sparse, dense[-1] - dense[0]) == pytest.approx(area)
    scaled = dense * [7.0, 0.1] + [1.0, -4.0]
    assert pareto.area_above_chord(scaled, scaled[-1] - scaled[0]) == pytest.approx(area)
    both = np.stack([dense, dense[[0, 0, 0, 0, 4]]])  # the second curve is the chord
    assert pareto.area_above_chord(both, dense[-1] - dense[0]) == pytest.approx([area, 0.0])
