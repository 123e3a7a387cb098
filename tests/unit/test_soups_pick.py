"""Choosing coefficients: published regrets of the policies, closed forms, refinement, cross-validation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from soups.errors import UserError
from soups.results import Result
from soups.search.pick import (
    POLICIES,
    best_measured,
    from_endpoints,
    from_preference,
    from_quadratic_fit,
    nearest,
    next_point,
    pick,
    table_of,
    usable_policies,
)

CURVES = json.loads((Path(__file__).parents[1] / "laws" / "soups_appendix.json").read_text())
ONE = [0]


def results(curve, noise=None) -> list[Result]:
    rows = []
    for i, (x, y) in enumerate(curve):
        share = i / (len(curve) - 1)
        scores = (
            {"x": [x], "y": [y]}
            if noise is None
            else {"x": (x + noise[i, 0]).tolist(), "y": (y + noise[i, 1]).tolist()}
        )
        means = {metric: float(np.mean(values)) for metric, values in scores.items()}
        rows.append(Result(str(i), {"a": 1 - share, "b": share}, means, len(scores["x"]), scores))
    return rows


def regret(table, chosen, full) -> float:
    values = full.utilities[:, 0]
    return float((values.max() - values[nearest(full.coefficients, chosen)]) / np.ptp(values))


# Mean regret over 19 preferences, as a fraction of the range: equal coefficients, the preference, the best of 5.
@pytest.mark.parametrize(
    ("name", "half", "preference", "best_of_5"),
    [
        ("news", 0.357, 0.160, 0.073),
        ("reddit", 0.171, 0.088, 0.072),
        ("stack", 0.570, 0.362, 0.103),
        ("review", 0.372, 0.198, 0.049),
        ("assistant", 0.306, 0.194, 0.063),
        ("bleu1_rouge", 0.088, 0.091, 0.017),
        ("locomotion", 0.288, 0.083, 0.057),
    ],
)
def test_the_policies_have_the_published_regrets(name, half, preference, best_of_5):
    curve = CURVES[f"{name}_rs"]
    rows = results(curve)
    sub = [rows[round(i * (len(rows) - 1) / 4)] for i in range(5)]
    found = []
    for mu in np.linspace(0.05, 0.95, 19):
        weights = {"x": 1 - mu, "y": mu}
        full = table_of(rows, weights)
        chosen = (np.array([0.5, 0.5]), from_preference(full, ONE), best_measured(table_of(sub, weights), ONE))
        found.append([regret(full, one, full) for one in chosen])
    assert np.mean(found, axis=0) == pytest.approx([half, preference, best_of_5], abs=1.5e-3)


def quadratic(shares, depth_x=1.0, depth_y=3.0):
    """Return rewards that are quadratic along the segment, each best at its own end."""
    return [[-depth_x * share**2, -depth_y * (1 - share) ** 2] for share in shares]


@pytest.mark.parametrize("mu", [0.1, 0.5, 0.8])
def test_on_quadratic_rewards_the_closed_form_and_the_fit_find_the_optimum(mu):
    table = table_of(results(quadratic(np.linspace(0, 1, 5))), {"x": 1 - mu, "y": mu}, raw=True)
    best = mu * 3 / ((1 - mu) * 1 + mu * 3)
    assert from_endpoints(table, ONE)[1] == pytest.approx(best)
    assert from_quadratic_fit(table, ONE)[1] == pytest.approx(best, abs=0.0026)


def test_normalised_rewards_make_the_closed_form_the_preference():
    table = table_of(results(quadratic(np.linspace(0, 1, 5))), {"x": 0.3, "y": 0.7})
    assert from_endpoints(table, ONE) == pytest.approx([0.3, 0.7])
    assert from_preference(table, ONE) == pytest.approx([0.3, 0.7])


def test_the_specialist_of_a_metric_is_found_by_its_score_not_by_its_place():
    rows = results(quadratic(np.linspace(0, 1, 5)))
    swapped = [Result(r.key, r.coefficients, r.metrics, 1, {"x": r.scores["y"], "y": r.scores["x"]}) for r in rows]
    assert from_preference(table_of(swapped, {"x": 0.9, "y": 0.1}), ONE) == pytest.approx([0.1, 0.9])


def test_one_model_that_is_best_in_both_leaves_the_policies_that_look_at_points():
    rows = results([[0.0, 0.0], [0.5, 0.6], [1.0, 1.0], [1.5, 1.2], [2.0, 2.0]])
    assert set(usable_policies(table_of(rows, {"x": 1, "y": 1}))) == {"quadratic fit", "best measured"}
    assert set(usable_policies(table_of(rows[1:3], {"x": 1, "y": 1}))) == {"best measured"}


def test_refinement_bisects_towards_the_optimum():
    scored = {share: quadratic([share])[0] for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    for _ in range(8):
        rows = [
            Result(f"{s}", {"a": 1 - s, "b": s}, {"x": v[0], "y": v[1]}, 1, {"x": [v[0]], "y": [v[1]]})
            for s, v in scored.items()
        ]
        point = next_point(table_of(rows, {"x": 1, "y": 1}, raw=True))
        if point is None:
            break
        assert point[1] not in scored
        scored[point[1]] = quadratic([point[1]])[0]
    best = max(scored, key=lambda share: sum(scored[share]))
    assert best == pytest.approx(0.75, abs=0.02)
    assert len(scored) > 6


def test_refinement_goes_on_where_the_other_side_is_still_open():
    def gain(share: float) -> float:  # falls slowly to the left of 0.5, and has its best beyond
        return 1 - 0.01 * (0.5 - share) if share <= 0.5 else 1.02 - abs(share - 0.52) if share < 0.6 else 0.0

    shares = [0.0, 0.484, 0.5, 1.0]
    while True:
        rows = [
            Result(f"{s}", {"a": 1 - s, "b": s}, {"x": gain(s), "y": gain(s)}, 1, {"x": [gain(s)], "y": [gain(s)]})
            for s in shares
        ]
        point = next_point(table_of(rows, {"x": 1, "y": 1}, raw=True))
        if point is None:
            break
        shares.append(point[1])
    assert max(shares, key=gain) == pytest.approx(0.52, abs=1 / 64)
    nearest_right = min(share for share in shares if share > max(shares, key=gain))
    assert nearest_right - max(shares, key=gain) < 1 / 64


def test_three_models_are_refined_between_neighbours():
    corners = {(1.0, 0.0, 0.0): 0.0, (0.0, 1.0, 0.0): 2.0, (0.0, 0.0, 1.0): 1.0}
    rows = [
        Result(str(p), dict(zip("abc", p, strict=True)), {"x": v, "y": v}, 1, {"x": [v], "y": [v]})
        for p, v in corners.items()
    ]
    assert next_point(table_of(rows, {"x": 1, "y": 1})) == (0.0, 0.5, 0.5)


def test_the_choice_is_judged_on_samples_it_has_not_seen():
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 11)
    noise = rng.normal(scale=2.0, size=(11, 2, 40))
    table = table_of(results(np.array(quadratic(shares, 1, 1))[:, :, None], noise), {"x": 1, "y": 1}, raw=True)
    data = pick(table, num_resamples=50)
    by_name = {row["policy"]: row for row in data["policies"]}
    lucky = by_name["best measured"]
    assert lucky["held_out_utility"] < lucky["utility"]["value"]
    assert data["choice"]["policy"] == max(by_name, key=lambda name: by_name[name]["held_out_utility"])
    assert data == pick(table, num_resamples=50)


@pytest.mark.parametrize(
    ("preference", "message"),
    [({"z": 1.0}, "unknown metric 'z'"), ({"x": -1.0}, "is -1"), ({"x": 0.0}, "no metric has a weight")],
)
def test_wrong_preferences_are_refused(preference, message):
    with pytest.raises(UserError, match=message):
        table_of(results(quadratic(np.linspace(0, 1, 5))), preference)


def test_models_that_are_close_in_a_part_of_the_samples_leave_all_policies_usable():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2, 30).astype(float)
    x = [base, base, base + (np.arange(30) == 0) / 30]  # the last is better in one sample of thirty
    y = [np.ones(30), np.zeros(30), np.zeros(30)]
    rows = [
        Result(str(i), {"a": 1 - s, "b": s}, {"x": v.mean(), "y": w.mean()}, 30, {"x": v.tolist(), "y": w.tolist()})
        for i, (s, v, w) in enumerate(zip((0.0, 0.5, 1.0), x, y, strict=True))
    ]
    found = pick(table_of(rows, {"x": 1, "y": 1}))
    assert [row["policy"] for row in found["policies"]] == list(POLICIES)


def test_of_constant_scores_the_fit_is_not_the_choice():
    constant = np.full((5, 2), 0.3)
    found = pick(table_of(results(constant, np.zeros((5, 2, 6))), {"x": 1, "y": 1}))
    assert found["choice"]["policy"] != "quadratic fit"


def test_without_a_simplex_there_is_no_quadratic_of_it():
    rows = results(quadratic(np.linspace(0, 1, 5)))
    free = [replace(r, coefficients={"a": 1.0, "b": r.coefficients["b"]}) for r in rows]
    assert list(usable_policies(table_of(free, {"x": 1, "y": 1}))) == ["best measured"]
