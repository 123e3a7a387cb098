"""Comparison of fronts: volumes in more dimensions, coverage, equal numbers of points, reading other sets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from soups import pareto
from soups.commands.options import read_series
from soups.compare import PointSet, compare, read_scores
from soups.errors import UserError
from soups.front import compute_front, read_init
from soups.metric_names import written
from soups.results import Result


def point_set(name, points, **options):
    points = np.array(points, float)
    return PointSet(name, points, points[None], **options)


@pytest.mark.parametrize("num_rewards", [1, 2, 3, 4])
def test_the_hypervolume_is_that_of_a_count_of_cells(num_rewards):
    rng = np.random.default_rng(num_rewards)
    for _ in range(20):
        points = rng.integers(0, 5, size=(6, num_rewards)).astype(float)
        cells = np.stack(np.meshgrid(*[np.arange(4)] * num_rewards, indexing="ij"), axis=-1).reshape(-1, num_rewards)
        covered = (points[:, None, :] >= cells[None] + 1).all(axis=2).any(axis=0).sum()
        clipped = np.minimum(points, 4.0)
        assert pareto.hypervolume(clipped, np.zeros(num_rewards)) == pytest.approx(float(covered))


def test_equal_points_are_evenly_spaced_with_both_ends():
    assert [pareto.evenly_spaced(11, count).tolist() for count in (1, 2, 3)] == [[5], [2, 8], [0, 5, 10]]
    assert pareto.evenly_spaced(2, 2).tolist() == [0, 1]
    assert pareto.evenly_spaced(21, 11).tolist() == list(range(0, 21, 2))
    assert pareto.evenly_spaced(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_a_set_that_covers_another_needs_no_shift():
    good, bad = [[0, 4], [3, 3], [4, 0]], [[0, 3], [2, 2], [3, 0]]
    result = compare([point_set("soups", good), point_set("morl", bad)])
    assert result["coverage"]["morl"]["num_uncovered"] == 0
    assert result["coverage"]["morl"]["epsilon"] <= 0
    soups, morl = result["sets"]
    assert soups["epsilon"]["value"] == soups["igd_plus"]["value"] == 0
    assert morl["epsilon"]["value"] == pytest.approx(0.25)
    reverse = compare([point_set("soups", bad), point_set("morl", good)])["coverage"]["morl"]
    assert reverse["num_uncovered"] == 3
    assert reverse["shifts"] == pytest.approx([0.25, 0.25, 0.25])


def test_the_straight_line_is_measured_but_is_no_target():
    line = point_set("straight line", [[0, 9], [9, 0]], is_target=False)
    result = compare([point_set("soups", [[0, 4], [4, 0]]), line])
    assert result["box"] == {"worst": [0.0, 0.0], "best": [4.0, 4.0]}
    assert "straight line" not in result["coverage"]


def test_other_sets_are_read_from_numbers_lists_and_fronts(tmp_path):
    path = tmp_path / "morl.json"
    points = [{"metrics": {"a": 1, "b": [2, 4]}}, {"metrics": {"a": {"value": 3.0}, "b": 5}}]
    path.write_text(json.dumps({"points": points[1:]}))
    assert read_scores(path, ("b", "a")).tolist() == [[[5.0, 3.0]]]
    path.write_text(json.dumps({"points": points}))
    with pytest.raises(UserError, match="different numbers of samples"):
        read_scores(path, ("a", "b"))
    with pytest.raises(UserError, match="no metric 'c'"):
        read_scores(path, ("c",))
    for text in ("{", "[]", '{"points": []}', '{"points": [3]}', '{"points": [{"metrics": {"a": "x"}}]}'):
        path.write_text(text)
        with pytest.raises(UserError):
            read_scores(path, ("a",))
    with pytest.raises(UserError, match="cannot read"):
        read_scores(tmp_path / "nowhere", ("a",))


def soup(share, x, y, modules=None):
    scores = {"x": [x, x + 1], "y": [y, y + 1]}
    means = {"x": x + 0.5, "y": y + 0.5}
    return Result(f"{share}{modules}", {"a": 1 - share, "b": share}, means, 2, scores, modules=modules or {})


def test_the_front_has_labels_a_comparison_and_a_knee_with_its_share():
    results = [soup(0.0, 0, 4), soup(0.5, 3, 3), soup(1.0, 4, 0)]
    data = compute_front(results, "x", "y", series={"morl": np.array([[[1.0, 1.0], [2.0, 2.0]]])})
    assert data["labels"] == {"x": "X", "y": "Y"}
    assert [row["name"] for row in data["comparison"]["sets"]] == ["soups", "morl", "straight line"]
    assert data["knee"]["coefficients"] == {"a": 0.5, "b": 0.5}
    assert data["knee"]["share_of_resamples"] == 1.0
    assert data["series"][0]["points"][0]["metrics"]["x"]["value"] == 1.5
    json.dumps(data, allow_nan=False)


def test_points_beyond_the_models_have_no_part_in_the_area_above_the_chord():
    inside = [soup(0.0, 0, 4), soup(0.5, 3, 3), soup(1.0, 4, 0)]
    beyond = [soup(-0.5, -3, 4), soup(1.5, 2, -3)]
    (straight, more) = (compute_front(points, "x", "y")["straight_line"] for points in (inside, inside + beyond))
    assert straight["area"]["value"] == pytest.approx(0.25)  # a triangle from corner to corner of 4 x 4, up to (3, 3)
    assert more["area"] == straight["area"]


def test_coefficients_per_module_leave_no_straight_line():
    modules = {"head": {"a": 0.5, "b": 0.5}}
    data = compute_front([soup(0.0, 0, 4, modules), soup(1.0, 4, 0, modules)], "x", "y")
    assert data["straight_line"] is data["margins"] is None
    assert data["points"][0]["modules"] == modules


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("cider_d", "CIDEr-D"),
        ("bleu4", "BLEU-4"),
        ("rouge_l", "ROUGE-L"),
        ("vqa_accuracy", "VQA accuracy"),
        ("brevity", "Brevity"),
        ("near_a", "Near a"),
        ("CIDEr", "CIDEr"),
        ("My metric", "My metric"),
        ("<i>", "<i>"),
    ],
)
def test_metrics_are_written_as_people_write_them(metric, text):
    assert written(metric) == text


def free(coefficients, x, y):
    scores = {"x": [x, x + 1], "y": [y, y + 1]}
    return Result(f"{coefficients}", coefficients, {"x": x + 0.5, "y": y + 0.5}, 2, scores)


def test_coefficients_that_do_not_sum_to_one_leave_no_straight_line():
    rows = [free({"a": a, "b": b}, x, y) for a, b, x, y in ((1, 0, 0, 4), (0, 1, 4, 0), (1, 1, 3, 3), (0, 0, 1, 1))]
    data = compute_front(rows, "x", "y")
    assert data["straight_line"] is data["margins"] is None
    assert compute_front(rows[:2], "x", "y")["straight_line"] is not None


def test_where_one_model_is_better_in_both_neither_axes_nor_names_decide_the_knee():
    rows = [soup(0.0, 0, 0), soup(0.25, 2, 3.5), soup(0.5, 3, 3.2), soup(0.75, 3.4, 2), soup(1.0, 1, 1)]
    renamed = [Result(r.key, {"b": r.coefficients["a"], "a": r.coefficients["b"]}, *rest(r)) for r in rows]
    turned = [Result(r.key, dict(reversed(r.coefficients.items())), *rest(r)) for r in rows]
    found = [compute_front(given, *axes) for given in (rows, renamed, turned) for axes in (("x", "y"), ("y", "x"))]
    assert {sorted(data["knee"]["coefficients"].values())[0] for data in found} == {0.5}
    assert {data["straight_line"]["num_below"] for data in found} == {None}
    assert {data["straight_line"]["area"] for data in found} == {None}


def rest(result):
    return result.metrics, result.num_samples, result.scores


def test_an_area_in_a_box_that_may_be_noise_is_not_told():
    points = (0.0, [0, 1, 0, 1.0], [4, 5, 4, 5.0]), (0.5, [3.0] * 4, [3.0] * 4), (1.0, [1, 0, 1, 0.1], [0, 1, 0, 1.0])
    rows = [
        Result(str(s), {"a": 1 - s, "b": s}, {"x": float(np.mean(x)), "y": float(np.mean(y))}, 4, {"x": x, "y": y})
        for s, x, y in points
    ]
    assert compute_front(rows, "x", "y")["straight_line"]["area"] is None


@pytest.mark.parametrize("value", ["NaN", "1e999", "[]", '[0.1, "x"]', "[NaN]"])
def test_scores_that_are_no_numbers_are_refused_when_they_are_read(tmp_path, value):
    path = tmp_path / "morl.json"
    path.write_text(f'{{"points": [{{"metrics": {{"a": {value}}}}}]}}')
    with pytest.raises(UserError, match="no readable metrics"):
        read_scores(path, ("a",))


@pytest.mark.parametrize("value", ["NaN", "1e999", '"x"'])
def test_an_initialisation_without_finite_scores_is_refused(tmp_path, value):
    path = tmp_path / "init.json"
    path.write_text(f'{{"metrics": {{"a": [{value}], "b": 0}}}}')
    with pytest.raises(UserError, match="no scores in this file"):
        read_init(path)
    path.write_text('{"metrics": {"a": [1, 2], "b": 0, "c": []}}')
    assert read_init(path) == {"a": 1.5, "b": 0.0}


@pytest.mark.parametrize("name", ["soups", "straight line", "morl"])
def test_a_set_of_models_has_a_name_of_its_own(tmp_path, name):
    (tmp_path / "m.json").write_text('{"points": [{"metrics": {"a": 1}}]}')
    with pytest.raises(UserError, match="is taken"):
        read_series("--compare", [f"morl={tmp_path / 'm.json'}", f"{name}={tmp_path / 'm.json'}"], ("a",))
