"""What a study says about its scores, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from soups.study.evidence import (
    MORL,
    Quantity,
    Trade,
    barrier_quantities,
    best_subset,
    mean_quantity,
    over_best,
    over_seeds,
    trade_quantities,
    verdict,
)

WEIGHTS = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])


def constant(points):
    """Give every point two equal samples: intervals have no width."""
    return np.repeat(np.array(points, float)[:, None, :], 2, axis=1)


def test_a_front_of_three_points_against_its_chord_and_against_morl():
    soups = constant([[1, 0], [0.75, 0.75], [0, 1]])
    found = trade_quantities(Trade(WEIGHTS, soups, {MORL: constant([[1, 0], [0.5, 1], [0, 1]])}), 10)
    value = {name: quantity.value for name, quantity in found.items()}
    # The reference is (-.1, -.1): the ends are 1.1 wide and .1 high.
    ends = 0.1 * 1.1 + 0.1 * 1.1 - 0.1 * 0.1
    assert value["hypervolume/soups"] == pytest.approx(0.85 * 0.85 + 2 * 0.1 * 0.25)
    assert value["hypervolume/straight line"] == pytest.approx(0.6 * 0.6 + 2 * 0.1 * 0.5)
    assert value["gain over the line"] == pytest.approx(0.7725 - 0.46)
    assert value["hypervolume/MORL"] == pytest.approx(0.6 * 1.1 + 0.5 * 0.1)
    assert value["equal points/MORL/hypervolume"] == pytest.approx(0.7725 - 0.71)
    # Two trainings of MORL at best are the middle and one end; the soups needed two trainings as well.
    assert value["hypervolume/MORL, best 2 trainings"] == pytest.approx(0.71)
    assert value["hypervolume/MORL, best 2 trainings"] > ends
    assert value["equal cost/MORL/hypervolume"] == pytest.approx(0.0625)
    # The union is (1, 0), (.75, .75), (.5, 1): (0, 1) is dominated. The soups miss the last by .25.
    assert value["igd_plus/soups"] == pytest.approx(0.25 / 3)
    assert value["igd_plus/MORL"] == pytest.approx(0.25 / 3)
    assert value["smallest margin/0"] == value["mean margin/1"] == pytest.approx(0.25)
    assert all(quantity.draws == pytest.approx(quantity.value) for quantity in found.values())


def test_soups_are_compared_at_as_many_points_as_the_others_have():
    weights = np.array([[1 - i / 4, i / 4] for i in range(5)])
    curve = np.sin(np.pi / 2 * np.stack([weights[:, 0], weights[:, 1]], axis=1))
    found = trade_quantities(Trade(weights, constant(curve), {MORL: constant(curve[::2])}), 5)
    assert found["equal points/MORL/hypervolume"].value == pytest.approx(0)
    assert found["hypervolume/soups"].value > found["hypervolume/soups, 3 points"].value
    assert found["equal points/MORL/igd_plus"].value == pytest.approx(0)


def test_intervals_are_paired_over_samples():
    """What is common to all models does not blur their difference: the samples differ by 100, the models by one."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(1, 50, 1)) * 100
    soups = np.array([[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]]) + common
    gain = trade_quantities(Trade(WEIGHTS, soups), 50)["gain over the line"]
    assert np.ptp(gain.draws) < 1e-9
    assert verdict(over_seeds([gain])) == "supported"


def test_the_best_subset_is_the_one_with_the_largest_volume():
    assert best_subset(np.array([[1, 0], [0.9, 0.9], [0, 1], [0.5, 0.5]]), 2) in ([0, 1], [1, 2])
    assert best_subset(np.array([[1.0, 0.0]]), 2) == [0]


def test_seeds_widen_the_interval():
    draws = np.zeros(1000)
    alone = over_seeds([Quantity(1.0, draws + 1)])
    assert alone == {"value": 1.0, "low": 1.0, "high": 1.0}
    both = over_seeds([Quantity(0.0, draws), Quantity(2.0, draws + 2)])
    assert (both["value"], both["per_seed"]) == (1.0, [0.0, 2.0])
    # Student's t with one degree of freedom: 1 plus or minus 12.71 times the standard error, which is 1.
    assert (both["low"], both["high"]) == (pytest.approx(-11.7, rel=0.1), pytest.approx(13.7, rel=0.1))
    assert verdict(both) == "undecided"
    same = over_seeds([Quantity(1.0, draws + 1)] * 3)
    assert (same["low"], same["high"]) == (1.0, 1.0)


def test_an_interval_over_seeds_keeps_to_what_the_number_can_be():
    soups = [constant([[1, 0], [0.75, height], [0, 1]]) for height in (0.75, 0.5, 0.1)]
    found = [trade_quantities(Trade(WEIGHTS, each, {"MORL": soups[0]}), 100) for each in soups]
    for name in ("igd_plus/soups", "hypervolume/soups"):
        over = over_seeds([each[name] for each in found])
        assert 0 <= over["low"] <= over["value"] <= over["high"]
    flat = [barrier_quantities(WEIGHTS, np.repeat(np.array([1.0, y, 1.0])[:, None], 3, axis=1), 50) for y in (1.0, 0.4)]
    assert over_seeds([each["barrier"] for each in flat])["low"] == 0
    difference = over_seeds([each["hypervolume/soups"] - found[0]["hypervolume/soups"] for each in found])
    assert difference["low"] < 0  # a difference has no bound


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_seeds_without_an_effect_rarely_show_one(num_seeds):
    generator = np.random.default_rng(0)
    said = [
        verdict(
            over_seeds([Quantity(value, value + np.zeros(20)) for value in generator.normal(size=num_seeds)], trial)
        )
        for trial in range(600)
    ]
    assert said.count("undecided") >= 0.92 * len(said)  # 95 % of them, give or take three standard errors


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 1, "supported"), (-1, -0.1, "contradicted"), (0, 1, "undecided")]
)
def test_a_verdict_needs_an_interval_on_one_side_of_zero(low, high, said):
    assert verdict({"low": low, "high": high}) == said


def test_the_best_of_noisy_models_is_chosen_in_every_resample():
    model = Quantity(1.0, np.array([1.0, 1.0]))
    lead = over_best(model, [Quantity(0.5, np.array([0.0, 1.0])), Quantity(0.4, np.array([0.8, 0.0]))])
    assert lead.value == 0.5
    assert lead.draws == pytest.approx([0.2, 0.0])


def test_a_mean_is_that_of_its_samples():
    found = mean_quantity([0.0, 1.0, 1.0, 0.0], 200)
    assert found.value == 0.5
    assert 0 < found.draws.std() < 0.5


def test_a_barrier_is_the_largest_fall_below_the_line():
    scores = np.repeat(np.array([[1.0], [0.2], [0.0]]), 3, axis=1)
    found = barrier_quantities(WEIGHTS, scores, 5)
    assert found["barrier"].value == pytest.approx(0.3)
    assert found["gain"].value == pytest.approx(0.0)
    assert found["ends"].value == pytest.approx(0.5)
