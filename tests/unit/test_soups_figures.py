"""Every kind of figure from hand-made results: what it holds, that it is drawn, that pages are self-contained."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from soups.errors import UserError
from soups.figures import Inputs, draw, kind_names
from soups.figures.curves import front_data
from soups.figures.front import caption
from soups.figures.spec import GREY, INK, PALETTE, Figure, spell
from soups.interactive import page
from soups.plot import draw as draw_canvas
from soups.plot import save_figure
from soups.results import Result

PICTURE = BytesIO()
Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(PICTURE, "PNG")
URI = "data:image/png;base64," + base64.b64encode(PICTURE.getvalue()).decode()
OTHER_URI = URI.replace("png", "webp")


def sweep(shares, bend=1.0, names=("first", "second"), output="a <b>cat</b>"):
    rows = []
    for share in shares:
        means = {"cider": 1 - share**2 * bend, "brevity": 1 - (1 - share) ** 2, "speed": 1 + share * (1 - share)}
        scores = {metric: [mean - 0.1, mean, mean + 0.1] for metric, mean in means.items()}
        samples = [{"prompt": f"picture {i}", "output": f"{output} {share:g}"} for i in range(3)]
        coefficients = {names[0]: 1 - share, names[1]: share}
        rows.append(Result(f"{names}{share}", coefficients, means, 3, scores, samples))
    return rows


MAIN = sweep(np.linspace(0, 1, 5).tolist())
BEYOND = sweep([-0.5, 0.0, 0.5, 1.0, 1.5])
SERIES = {"morl": np.array([[[0.5, 0.5]], [[0.4, 0.9]]])}
INIT = {"cider": 0.2, "brevity": 0.3, "speed": 0.9}
INPUTS = {
    "front": Inputs({"main": MAIN}, init=INIT, series=SERIES, trajectories=SERIES, fit="smooth"),
    "spider": Inputs({"main": MAIN, "morl": MAIN[1:2]}, init=INIT),
    "user-preference": Inputs({"main": MAIN}, series=SERIES, init={"cider": 2.0, "brevity": 2.0}),
    "metrics-vs-lambda": Inputs({"main": MAIN}, init=INIT),
    "ensemble-vs-soup": Inputs({"main": MAIN}, series={"ensemble": SERIES["morl"]}),
    "theory": Inputs(),
    "wise": Inputs({"main": MAIN, "to init": sweep([0.0, 0.5, 1.0], 0.3, ("first", "init"))}, fit="steps"),
    "seeds": Inputs({"main": MAIN, "again": sweep([0.0, 0.5, 1.0], 0.9)}),
    "extrapolate": Inputs({"main": BEYOND}),
    "grid": Inputs({"main": MAIN, "b": sweep([0.0, 1.0]), "c": MAIN}, num_columns=2),
    "strip": Inputs({"main": MAIN}),
}


def test_the_kinds_are_those_of_the_papers():
    assert kind_names() == sorted([*INPUTS, "end-to-end", "pairs", "radar"])


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_is_drawn_and_its_page_holds_its_data(kind, tmp_path):
    figure = draw(kind, INPUTS[kind])
    (path,) = save_figure(figure, tmp_path, kind, kinds=("png",))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert np.asarray(Image.open(path)).std() > 1  # not blank
    html = page(figure)
    assert not re.search(r"(src|href)\s*=|@import|url\(", html)
    assert "<b>cat" not in html
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert data["title"] == figure.title
    assert len(data["panels"]) == len(figure.panels)


def curves(figure, panel=0):
    """Return the first curve of each name; the second may be its chord."""
    return {curve.name: curve for curve in reversed(figure.panels[panel].curves)}


def test_the_front_shows_values_labels_and_samples():
    figure = draw("front", INPUTS["front"])
    plane, found = figure.panels[0], curves(figure)
    assert (plane.x_label, plane.y_label) == ("CIDEr", "Brevity")
    soups = found["soup"].marks
    assert [mark.x for mark in soups] == pytest.approx([r.metrics["cider"] for r in MAIN])
    assert [mark.y for mark in soups] == pytest.approx([r.metrics["brevity"] for r in MAIN])
    assert soups[1].samples[0] == {"prompt": "picture 0", "output": "a <b>cat</b> 0.25"}
    assert soups[1].details["Coefficients"] == {"first": "0.75", "second": "0.25"}
    assert (soups[0].label, soups[-1].label) == ("first", "second")
    assert len(found["soup"].path) == 80
    assert (found["init"].marks[0].x, found["morl"].marker) == (0.2, "square")


def test_the_verdict_under_a_front_is_the_area_and_not_a_gain_that_counts_how_points_are_spread():
    shares = [0, 0.02, 0.04, 0.06, 0.5, 0.94, 0.96, 0.98, 1]  # a little above the line, and close to the ends
    placed = dict(zip(np.linspace(0, 1, 9).tolist(), shares, strict=True))
    rows = []
    for share, place in placed.items():
        means = {"cider": 1 - place, "brevity": place + 0.1 * place * (1 - place)}
        scores = {metric: [mean - 0.01, mean, mean + 0.01] for metric, mean in means.items()}
        rows.append(Result(str(share), {"first": 1 - share, "second": share}, means, 3, scores))
    found = front_data(rows, "cider", "brevity")
    assert found["straight_line"]["gain"]["value"] < 0 < found["straight_line"]["area"]["low"]
    first, second, *_ = caption(found).split("\n")
    assert first == "The line through the soups lies above the straight line; 0 of 7 mixtures are below."
    assert second == f"Area between the two: {spell(found['straight_line']['area'])} of the box of their ends."
    assert "gain" not in caption(found)
    assert "as many points" not in caption(found)

    line = found["straight_line"]
    for low, high, place in ((-2.0, -1.0, "lies below"), (-1.0, 1.0, "is not shown to lie above or below")):
        own = {**found, "straight_line": {**line, "area": {"value": 0.0, "low": low, "high": high}, "num_below": 3}}
        assert caption(own).startswith(f"The line through the soups {place} the straight line; 3 of 7 mixtures")
    unknown = {**found, "straight_line": {**line, "area": None, "num_below": None}}
    assert f"gain {spell(line['gain'])}" in caption(unknown)


def test_ten_series_have_colours_that_can_be_told_apart():
    assert len(set(PALETTE)) == len(PALETTE) == 10
    series = {f"set {i}": SERIES["morl"] for i in range(10)}
    drawn = draw("front", Inputs({"main": MAIN}, series=series)).panels[0].curves
    colours = [hex_to_lab(curve.colour) for curve in drawn if curve.name.startswith("set")]
    colours += [hex_to_lab(GREY), hex_to_lab(INK)]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 20  # of CIE 1976; 2.3 can just be noticed


def hex_to_lab(colour):
    """Return a colour in CIELAB."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    weights = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = weights @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_steps_enclose_what_is_dominated():
    figure = draw("front", Inputs({"main": MAIN}, fit="steps"))
    path = np.array(curves(figure)["soup"].path)
    assert ((np.diff(path[:, 0]) == 0) | (np.diff(path[:, 1]) == 0)).all()


def test_a_spider_map_runs_from_the_worst_to_the_best():
    spider = draw("spider", INPUTS["spider"]).panels[0]
    assert [spoke.label for spoke in spider.spokes] == ["CIDEr", "Brevity", "Speed"]
    assert (spider.spokes[0].worst, spider.spokes[0].best) == (0.0, 1.0)
    assert [polygon.name for polygon in spider.polygons] == ["init", "first", "second", "uniform soup", "morl"]


def test_a_legend_of_many_models_stays_on_the_page():
    metrics = {"a": 0.5, "b": 0.2, "c": 0.1}
    names = ["detail", "brevity", "bleu", "rouge", "names"]
    results = [
        Result(n, {k: float(k == n) for k in names}, metrics, 1, {k: [v] for k, v in metrics.items()}) for n in names
    ]
    uniform = Result("u", dict.fromkeys(names, 0.2), metrics, 1, {k: [v] for k, v in metrics.items()})
    others = {"MORL": [Result("m", {"m": 1.0}, metrics, 1, {k: [v] for k, v in metrics.items()})]}
    canvas = draw_canvas(draw("spider", Inputs({"main": [*results, uniform], **others}, init=metrics)))
    canvas.canvas.draw()
    (legend,) = canvas.legends
    assert len(legend.get_texts()) == 8
    assert legend.get_window_extent().x1 <= canvas.bbox.x1


@pytest.mark.parametrize("number", [3, 5, 6])
def test_long_names_of_metrics_stay_on_the_page(number):
    metrics = {f"accuracy of boxes:number {i}": float(i) for i in range(number)}
    scores = {name: [value] for name, value in metrics.items()}
    results = [Result(name, {name: 1.0}, metrics, 1, scores) for name in ("a", "b")]
    canvas = draw_canvas(draw("spider", Inputs({"main": results})))
    labels = [text for axes in canvas.axes for text in axes.texts if "number" in text.get_text()]
    assert len(labels) == number
    page_box = canvas.bbox
    for label in labels:
        box = label.get_window_extent()
        assert page_box.x0 <= box.x0 < box.x1 <= page_box.x1
        assert page_box.y0 <= box.y0 < box.y1 <= page_box.y1


def test_a_preference_for_one_metric_gives_its_expert_all():
    found = curves(draw("user-preference", Inputs({"main": MAIN})))
    matched = found["coefficient = preference"].marks
    assert (matched[0].y, matched[-1].y) == pytest.approx((1.0, 1.0))
    assert found["coefficient 1"].marks[0].y == pytest.approx(0.0)
    # quadratic rewards with equal gaps: at one half the best soup is in the middle, 3/4 of the way in both
    assert matched[10].y == pytest.approx(0.75)
    assert found["cross-validated"].marks[10].y == pytest.approx(0.75)


def test_an_init_below_the_experts_is_no_unit_and_many_trainings_have_a_colour():
    plain = curves(draw("user-preference", Inputs({"main": MAIN})))
    series = {f"training {i}": SERIES["morl"] for i in range(12)}
    found = curves(
        draw("user-preference", Inputs({"main": MAIN}, init={"cider": -3.0, "brevity": -3.0}, series=series))
    )
    for name in ("coefficient = preference", "cross-validated"):
        assert [mark.y for mark in found[name].marks] == pytest.approx([mark.y for mark in plain[name].marks])
    assert sum("trained for it" in name for name in found) == 12


def test_metrics_are_relative_to_the_init_or_to_the_first_model():
    found = curves(draw("metrics-vs-lambda", Inputs({"main": MAIN}, init=INIT)))
    assert [mark.y for mark in found["CIDEr"].marks] == pytest.approx([r.metrics["cider"] / 0.2 for r in MAIN])
    positive = [replace(r, metrics={"speed": r.metrics["speed"]}) for r in MAIN]
    assert curves(draw("metrics-vs-lambda", Inputs({"main": positive})))["Speed"].marks[0].y == 1.0


def test_metrics_that_start_at_zero_or_below_are_measured_from_there_in_units_of_their_range():
    figure = draw("metrics-vs-lambda", Inputs({"main": MAIN}))  # brevity starts at 0
    found = {name: [mark.y for mark in curve.marks] for name, curve in curves(figure).items()}
    assert found["CIDEr"] == pytest.approx([r.metrics["cider"] - 1 for r in MAIN])
    assert found["Speed"] == pytest.approx([0, 0.75, 1, 0.75, 0])
    assert "change from first" in figure.panels[0].y_label


def test_extrapolated_points_are_hollow_and_shaded():
    figure = draw("extrapolate", INPUTS["extrapolate"])
    assert [mark.is_faded for mark in curves(figure)["soup"].marks] == [True, False, False, False, True]
    assert figure.panels[1].shaded == [(-0.5, 0.0), (1.0, 1.5)]


def test_a_strip_has_a_row_per_example_and_may_hold_pictures(tmp_path):
    strip = draw("strip", INPUTS["strip"]).panels[0]
    assert (strip.rows[1], strip.columns[0], strip.columns[2]) == ("picture 1", "first", "0.5 : 0.5")
    assert strip.cells[1][2] == "a <b>cat</b> 0.5"
    pictures = [Result(r.key, r.coefficients, r.metrics, 3, r.scores, [{"uid": "7", "picture": URI}]) for r in MAIN]
    figure = draw("strip", Inputs({"main": pictures}))
    assert figure.panels[0].cells == [[URI] * 5]  # no other field is left: they are what the points drew
    assert (figure.panels[0].rows, figure.panels[0].num_given) == (["1"], 0)
    save_figure(figure, tmp_path, "strip", kinds=("png",))
    pixels = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    assert (pixels == 200).all(axis=2).mean() > 0.02


def strip_of(*columns):
    """Return the strip of points with these samples."""
    shares = np.linspace(0, 1, len(columns))
    rows = [
        Result(str(share), {"a": 1 - share, "b": share}, {"x": 1.0}, 1, {"x": [1.0]}, samples)
        for share, samples in zip(shares, columns, strict=True)
    ]
    return draw("strip", Inputs({"main": rows})).panels[0]


def test_what_all_points_were_shown_stands_once_and_a_cell_is_what_one_said(tmp_path):
    def samples(said):
        return [
            {"uid": "caption/7", "picture": URI, "caption": "a cat", "prediction": f"{said} cat"},
            {"uid": "vqa/8", "picture": URI, "question": "what is it?", "reference": "a cat", "prediction": said},
        ]

    strip = strip_of(samples("a"), samples("the"), samples(""))
    assert (strip.columns, strip.num_given) == (["input", "reference", "a", "0.5 : 0.5", "b"], 2)
    assert strip.rows == ["1", "what is it?"]
    assert strip.cells == [[URI, "a cat", "a cat", "the cat", " cat"], [URI, "a cat", "a", "the", ""]]
    save_figure(Figure("", [strip]), tmp_path, "strip", kinds=("png",))
    pixels = np.asarray(Image.open(tmp_path / "strip.png").convert("RGB"))
    where = np.flatnonzero((pixels == 200).all(axis=2).any(axis=0))
    assert where.max() - where.min() < 0.3 * pixels.shape[1]  # in one column


def test_a_strip_of_captions_has_no_identities_and_keeps_equal_predictions():
    samples = [{"uid": "world/test/0", "caption": "a cat", "prediction": "a dog"}]
    strip = strip_of(samples, samples)
    assert (strip.columns, strip.rows, strip.cells) == (["reference", "a", "b"], ["1"], [["a cat", "a dog", "a dog"]])


@pytest.mark.parametrize("name", ["output", "drawing"])
def test_a_picture_that_a_model_drew_is_its_cell(name):
    columns = [[{"prompt": "a cat", "picture": URI, name: uri, "score": "3"}] for uri in (URI, OTHER_URI)]
    strip = strip_of(*columns)
    assert (strip.rows, strip.columns) == (["a cat"], ["input", "score", "a", "b"])
    assert strip.cells == [[URI, "3", URI, OTHER_URI]]


def test_without_a_prediction_a_cell_is_what_differs_between_points():
    columns = [[{"question": "how many?", "text": str(n), "seed": "1", "steps": str(n + 1)}] for n in (3, 4)]
    strip = strip_of(*columns)
    assert (strip.rows, strip.columns) == (["how many?"], ["seed", "a", "b"])
    assert strip.cells == [["1", "3\n4", "4\n5"]]


def test_small_multiples_share_their_axes():
    figure = draw("grid", INPUTS["grid"])
    assert (figure.shares_axes, figure.num_columns, len(figure.panels)) == (True, 2, 3)


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("pie", Inputs(), "choices: end-to-end, .*front, .*user-preference, wise"),
        ("sprip", Inputs(), "did you mean 'strip'.*end-to-end, .*user-preference, wise"),
        ("front", Inputs(), "needs the results"),
        ("extrapolate", Inputs({"main": MAIN}), "no point lies beyond"),
        ("ensemble-vs-soup", Inputs({"main": MAIN}), "no ensemble"),
        ("wise", Inputs({"main": MAIN}), "only one sweep"),
        ("strip", Inputs({"main": [Result("k", {"a": 1.0}, {"x": 1.0}, 1, {"x": [1.0]})]}), "no examples"),
        ("spider", Inputs({"main": [Result("k", {"a": 1.0}, {"x": 1.0}, 1, {"x": [1.0]})]}), "three metrics"),
        ("front", Inputs({"main": MAIN}, init={"cider": 1.0}), "no score 'brevity'"),
    ],
)
def test_what_does_not_suffice_is_named(kind, inputs, message):
    with pytest.raises(UserError, match=message):
        draw(kind, inputs)


def test_curves_are_named_after_the_coefficients_that_they_show():
    shares = np.linspace(0, 1, 11).tolist()
    curves = draw("user-preference", Inputs({"main": sweep(shares)})).panels[0].curves
    names = [curve.name for curve in curves if curve.line == "thin"]
    assert names == [f"coefficient {share}" for share in ("0", "0.2", "0.5", "0.7", "1")]


def test_an_origin_that_is_no_model_is_not_called_one():
    inside, whole = (
        draw("metrics-vs-lambda", Inputs({"main": MAIN[1:4]})),
        draw("metrics-vs-lambda", Inputs({"m": MAIN})),
    )
    assert inside.panels[0].y_label == "metric, relative to the first point"
    assert whole.panels[0].y_label == "change from first, in units of the range"
    assert (bool(inside.caption), bool(whole.caption)) == (False, True)
    assert [curve.line for curve in inside.panels[0].curves] == ["solid"] * 3


def test_points_with_modules_of_their_own_are_left_out_where_one_coefficient_counts():
    same = [replace(r, modules={"head": dict(r.coefficients)}) for r in MAIN]
    other = [replace(r, key=f"{r.key}h", modules={"head": {"first": 0.3, "second": 0.7}}) for r in MAIN]
    for kind in ("metrics-vs-lambda", "spider"):
        assert draw(kind, Inputs({"main": [*other, *same]})) == draw(kind, Inputs({"main": same}))
        with pytest.raises(UserError, match="coefficients of its own for some modules"):
            draw(kind, Inputs({"main": other}))
    assert [curve.line for curve in draw("seeds", Inputs({"main": [*same, *other]})).panels[0].curves] == ["none"]


def test_a_strip_shows_the_examples_that_all_points_have():
    rows = [replace(r, samples=r.samples[: 1 + index]) for index, r in enumerate(MAIN[:3])]
    assert len(draw("strip", Inputs({"main": rows})).panels[0].rows) == 1


def test_points_off_the_line_between_two_models_are_not_joined():
    free = [replace(r, coefficients={"first": 1.0, "second": r.coefficients["second"]}) for r in MAIN]
    assert next(curve.line for curve in draw("front", Inputs({"main": free})).panels[0].curves) == "none"
    assert next(curve.line for curve in draw("front", Inputs({"main": MAIN})).panels[0].curves) == "solid"
