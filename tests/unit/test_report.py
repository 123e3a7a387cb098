"""The report is one file that loads nothing, escapes everything, and shows what the run folder holds."""

import json
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unival.report import duration, write_report
from unival.report.estimate import METRICS, Estimate, metric_of, wilson
from unival.report.folder import MissingError, RunFolder
from unival.report.gallery import iou
from unival.report.markup import MAX_CHARS, Markup, tag, visible, write_atomically
from unival.report.plot import blend, boxes, curve, strip, ticks, waveform
from unival.report.sections import stage_starts

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>[x](https://x.test) &lt;b&gt; \x1b[31m \u202e \ud800 "
    + "w" * 100_000
)
VOID = {"img", "br", "meta", "line", "circle", "rect", "path"}
LOADING = {"src", "href", "srcset", "poster", "data", "action", "xlink:href", "background"}


class Page(HTMLParser):
    """The elements, attributes and text of a page; fails where an element is not closed."""

    def __init__(self, source):
        super().__init__()
        self.source, self.elements, self.open, self.pieces = source, [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self):
        return " ".join("".join(self.pieces).split())

    def names(self):
        return {name for name, _ in self.elements}

    def links(self):
        return [value for _, attributes in self.elements for key, value in attributes.items() if key in LOADING]


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def dump(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def log(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_samples(out, text):
    (out / "samples").mkdir(parents=True)
    for index in range(3):
        picture = np.full((8, 8, 3), 60 * index, dtype=np.uint8)
        Image.fromarray(picture).save(out / f"samples/{index}.png")
    (out / "samples/a.mp4").write_bytes(b"not really a film")
    with wave.open(str(out / "samples/a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(0, 8000, 10, dtype="<i2").tobytes())
    picture = {"file": "samples/0.png", "width": 8, "height": 8}
    clip = {"file": "samples/a.mp4", "frames": [f"samples/{i}.png" for i in range(3)]}
    answer = {"text": text, "prediction": text, "reference": f"reference {text}", "correct": False}
    find = {"text": text, "prediction": [1.0, 1, 4, 4], "reference": [1.0, 1, 4, 7], "correct": True}
    samples = [
        {"task": "caption", **answer, **picture, "text": None},
        {"task": "vqa", **answer, **picture},
        {"task": "grounding", **find, **picture},
        {"task": "grounding", **find, **picture, "prediction": None, "correct": False},
        {"task": "video-caption", **answer, **clip},
        {"task": "video-vqa", **answer, "file": "samples/a.mp4"},
        {"task": "audio-caption", **answer, "file": "samples/a.wav"},
    ]
    dump(out / "samples/samples.json", samples)


def write_curves(out, text):
    stages = [("image-text", 5), ("image-text", 10), (text, 15)]
    rows = [{"step": step - 1, "stage": stage, "seconds": 8 * step, "loss": 2.0} for stage, step in stages]
    for row, value in zip(rows, (3.5, float("nan"), 1.25), strict=True):
        row |= {"loss/image_caption": value}
    rows[-1] |= {f"loss/video_{text}": 4.0}
    log(out / "pretrain/metrics.jsonl", rows)
    log(out / "audio/metrics.jsonl", [{"step": 9, "stage": "audio", "seconds": 1, "loss/audio_caption": 0.75}])
    for name, reward in (("detail", 0.5), ("brevity", 0.9)):
        row = {"step": 1, "stage": name, "seconds": 1, "loss": 0.0, "reward": reward, "length": 10 * reward}
        log(out / f"{name}/metrics.jsonl", [row])


def write_front(out, text):
    names = ["detail", text]
    points = [
        {
            "coefficients": dict(zip(names, (1 - w, w), strict=True)),
            "nondominated": w != 0.5,
            "metrics": {"cider_d": {"value": 6 - w, "low": 5 - w, "high": 7 - w}, "brevity": interval(w, 0.1)},
        }
        for w in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    line = {"hypervolume": {"value": 1.5, "low": 1.25, "high": 1.75}, "gain": interval(0.5, 0.25)}
    line |= {"area": interval(0.25, 0.125), "num_below": 0}
    front = {
        "x": "cider_d",
        "y": "brevity",
        "init": {"cider_d": 5.0, "brevity": 0.5},
        "checkpoints": names,
        "num_samples": 200,
        "points": points,
        "hypervolume": {"value": 2.0, "low": 1.75, "high": 2.25},
        "knee": {"index": 1, "coefficients": points[1]["coefficients"]},
        "straight_line": line,
    }
    dump(out / "sweep/front.json", front)
    (out / "sweep/front.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>', encoding="utf-8")
    (out / "sweep/front.html").write_text("", encoding="utf-8")
    samples = [{"uid": text, "caption": text, "prediction": text}]
    results = [{"coefficients": point["coefficients"], "samples": samples} for point in points]
    log(out / "sweep/results.jsonl", results)
    dump(out / "sweep/pictures.json", {text: "samples/0.png"})
    checkpoints = {"detail": {"path": "runs/demo/detail/model"}, text: {"path": text}}
    dump(out / "sweep/sweep.json", {"checkpoints": checkpoints, "evaluator": "a:b", "args": {"limit": 200, "x": text}})
    gains = {
        "detail": {"metric": "cider_d", **interval(1.25, 0.25)},
        text: {"metric": "brevity", **interval(0.02, 0.05)},
    }
    dump(out / "sweep/gains.json", gains)


def write_tables(out, text):
    steps = [
        {"name": "understand", "title": "Describe, answer, find", "seconds": 41.2, "complete": True},
        {"name": "audio", "title": text, "seconds": 90.0, "complete": False},
        {"name": "sweep", "title": "Sweep", "seconds": 2.5, "complete": True},
    ]
    dump(out / "times.json", {"steps": steps, "total_seconds": 133.7, "seed": 1})
    dump(out / "versions.json", {"unival": "0.1.0", "torch": text, "machine": "a small machine"})
    types = {"what": {"samples": 40, "accuracy": 0.9, "most_frequent_answer": 0.125}, text: {}}
    types[text] = types["what"]
    evaluation = {
        "caption": {"samples": 150, "metrics": {"cider_d": interval(7.9, 0.4), "names": interval(0.913, 0.04)}},
        "vqa": {"samples": 300, "metrics": {"accuracy": interval(0.931, 0.03)}, "question_types": types},
        "grounding": {"samples": 150, "metrics": {"accuracy@0.5": interval(1.0, 0.0), text: interval(0.87, 0.02)}},
        text: {"samples": 150, "metrics": {"accuracy": interval(0.8, 0.05)}},
    }
    dump(out / "understand/evaluation.json", evaluation)
    family = {"accuracy": interval(0.6, 0.08), "chance": 0.08, "most_frequent": 0.2, "samples": 150}
    dump(out / "audio/family.json", family)
    dump(out / "audio/evaluation.json", {"audio-caption": {"samples": 150, "metrics": {"exact": interval(0.4, 0.08)}}})
    styles = [{"name": "noto", "seen": True}, {"name": text, "seen": False}]
    rows = [{"model": text, "cells": [interval(0.9, 0.05), interval(0.5, 0.08)]}]
    dump(out / "ood/table.json", {"metric": "names", "styles": styles, "rows": rows, "margin": interval(0.03, 0.05)})


def write_run(out, text="brevity"):
    for write in (write_samples, write_curves, write_front, write_tables):
        write(out, text)
    return out


def read(out):
    return Page(write_report(out).read_text(encoding="utf-8"))


def test_every_part_of_a_complete_run_is_shown(tmp_path):
    page = read(write_run(tmp_path))
    assert "Nothing to show yet" not in page.text
    assert "Not shown" not in page.text
    for number in ("2 min 14 s", "91.3 % [87.3, 95.3]", "7.90 [7.50, 8.30]", "90.0 % [76.9, 96.0]", "seed 1"):
        assert number in page.text
    assert "hypervolume of the front 2.00 [1.75, 2.25]" in page.text.replace("front2", "front 2")
    assert "60.0 % of 150 test sounds, 7.5 times chance (95 % interval 6.5 to 8.5 times)" in page.text
    assert "image-text from step 0, then brevity from step 10" in page.text
    assert {"svg", "audio", "video", "table", "img"} <= page.names()


def test_sentences_say_what_the_intervals_allow(tmp_path):
    text = read(write_run(tmp_path)).text
    assert "The detail specialist gained: the interval excludes zero." in text
    assert "The brevity specialist is not shown to have gained: the interval includes zero." in text
    assert "Neither the average nor the better specialist is shown to be ahead there" in text
    table = json.loads((tmp_path / "ood/table.json").read_text("utf-8"))
    dump(tmp_path / "ood/table.json", table | {"margin": interval(-0.08, 0.05)})
    assert "The average is worse than the better specialist there" in read(tmp_path).text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page = read(write_run(tmp_path))
    assert all(link.startswith(("data:", "#")) or link == "sweep/front.html" for link in page.links())
    assert not page.names() & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "url(" not in page.source
    policy = next(a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_hostile_text_stays_text(tmp_path):
    page = read(write_run(tmp_path / "hostile", HOSTILE))
    assert page.names() == read(write_run(tmp_path / "harmless")).names()
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)
    assert "javascript:" not in page.source
    assert "<script>alert(1)</script>" in page.text
    assert r"\x1b[31m \u202e \ud800" in page.text
    assert "w" * (MAX_CHARS + 1) not in page.source


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("times.json", "times.json is missing"),
        ("versions.json", "versions.json is missing"),
        ("understand/evaluation.json", "understand/evaluation.json is missing"),
        ("samples/samples.json", "samples/samples.json is missing"),
        ("samples/a.wav", "samples/a.wav is missing"),
        ("pretrain/metrics.jsonl", "pretrain/metrics.jsonl is missing"),
        ("audio/family.json", "audio/family.json is missing"),
        ("brevity/metrics.jsonl", "brevity/metrics.jsonl is missing"),
        ("sweep/front.json", "sweep/front.json is missing"),
        ("sweep/front.svg", "sweep/front.svg is missing"),
        ("sweep/gains.json", "sweep/gains.json is missing"),
        ("sweep/results.jsonl", "sweep/results.jsonl is missing"),
        ("ood/table.json", "ood/table.json is missing"),
    ],
)
def test_a_missing_file_costs_its_own_part_only(tmp_path, name, said):
    (write_run(tmp_path) / name).unlink()
    page = read(tmp_path)
    assert said in page.text
    assert "Not shown" not in page.text
    assert ("91.3 %" in page.text) == (name != "understand/evaluation.json")


@pytest.mark.parametrize(
    "name", ["audio/evaluation.json", "sweep/front.html", "sweep/pictures.json", "sweep/sweep.json"]
)
def test_a_file_that_only_adds_is_not_missed(tmp_path, name):
    (write_run(tmp_path) / name).unlink()
    assert "Nothing to show yet" not in read(tmp_path).text


def test_an_empty_run_still_makes_a_page(tmp_path):
    text = read(tmp_path).text
    assert "From one small model to a Pareto front" in text
    assert "No numbers yet" in text


def test_torn_and_malformed_files_are_named(tmp_path):
    write_run(tmp_path)
    (tmp_path / "ood/table.json").write_text('{"metric": "na', encoding="utf-8")
    (tmp_path / "sweep/gains.json").write_text('{"detail": 3}', encoding="utf-8")
    with (tmp_path / "pretrain/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 1')
    text = read(tmp_path).text
    assert "ood/table.json is not complete" in text
    assert "Not shown, the files of this part are not as expected (gains:" in text
    assert "image caption 1.25" in text


def test_nothing_outside_the_run_folder_is_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(MissingError):
        RunFolder(out).path("../secret.png")


def test_the_same_run_gives_the_same_page_and_leaves_no_other_file(tmp_path):
    write_run(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == before | {"index.html"}


def test_a_write_that_fails_keeps_the_old_file(tmp_path):
    write_atomically(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a", "new \ud800")
    assert [path.read_text("utf-8") for path in tmp_path.iterdir()] == ["old"]


@given(st.text(max_size=MAX_CHARS // 10))
def test_text_comes_back_from_markup_as_it_went_in(text):
    page = Page(tag("p", text, title=text))
    assert page.names() == {"p"}
    assert "".join(page.pieces) == visible(text)
    assert page.elements[0][1]["title"] == visible(text)


def test_markup_is_nested_as_it_is():
    assert tag("p", tag("b", "<"), None, 3, class_="x", hidden=True, id=None) == '<p class="x" hidden><b>&lt;</b>3</p>'
    assert tag("rect", stroke_width=2) == '<rect stroke-width="2"/>'
    assert isinstance(tag("p"), Markup)


def test_wilson_matches_published_values():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, num, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        estimate = wilson(hits / num, num)
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)


def test_a_rate_without_spread_gets_a_bound():
    sure = {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert Estimate.of_rate(sure, 150).low == pytest.approx(0.9750, abs=1e-4)
    assert Estimate.of_rate(sure, 150).high == 1.0
    assert Estimate.of_rate(interval(0.5, 0.1), 150) == Estimate(0.5, 0.4, 0.6)


def test_estimates_are_spelled_with_unit_and_sign():
    def plain(markup):
        return "".join(Page(markup).pieces)

    assert plain(Estimate(0.913, 0.867, 0.953).spell(METRICS["names"])) == "91.3 % [86.7, 95.3]"
    assert plain(Estimate(0.03, -0.004, 0.06).spell_change(METRICS["names"])) == "+3.0 points [−0.4, +6.0]"  # noqa: RUF001
    assert plain(Estimate(0.02, -0.01, 0.0).spell_change(metric_of("brevity"))) == "+0.020 [−0.010, 0.000]"  # noqa: RUF001
    assert metric_of("some_score").label == "some score"


def test_drawings_hold_the_values():
    drawn = dict(Page(strip(0.5, 0.25, 1.0, 0.0, 1.0)).elements[-1][1])
    assert drawn["cx"] == "50.00%"
    assert strip(float("nan"), 0, 1, 0, 1) == ""
    lines = [a for n, a in Page(curve([1, 2], [4.0, 2.0], 2, 4.0, boundaries=[1])).elements if "stroke-dasharray" in a]
    assert [line["x1"] for line in lines] == ["142.0"]
    rects = [a for n, a in Page(boxes(96, 96, [30.0, 8, 10, 40], None)).elements if n == "rect"]
    assert [(r["x"], r["y"], r["width"], r["height"]) for r in rects] == [("10.00", "8.00", "20.00", "32.00")] * 2
    assert ticks(5.2) == [0, 2, 4]
    assert (blend(0), blend(1)) == ("#fa7659", "#6dafd7")


def test_long_drawings_are_whole(tmp_path):
    steps = list(range(500))
    path = next(a for n, a in Page(curve(steps, [1.0] * 500, 499, 1.0)).elements if n == "path")
    assert path["d"].count("L") == 499
    write_samples(tmp_path, "")
    drawing = waveform(tmp_path / "samples/a.wav", num_bars=150)
    assert next(a for n, a in Page(drawing).elements if n == "path")["d"].count("M") == 150


def test_a_wav_of_another_kind_has_no_waveform(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    assert waveform(tmp_path / "a.wav") is None


def test_overlap_of_boxes():
    assert iou([0, 0, 2, 2], [0, 0, 2, 4]) == 0.5
    assert iou([0, 0, 1, 1], [2, 2, 3, 3]) == 0.0
    assert iou(None, [0, 0, 1, 1]) is None


def test_a_gain_that_may_contradict_the_area_is_shown_only_without_one(tmp_path):
    text = read(write_run(tmp_path)).text
    assert "area above the straight line, in boxes of the specialists+0.25 [+0.12, +0.38]" in text
    assert "gain over these points" not in text
    content = json.loads((tmp_path / "sweep/front.json").read_text("utf-8"))
    content["straight_line"]["area"] = None
    dump(tmp_path / "sweep/front.json", content)
    assert "gain over these points+0.50 [+0.25, +0.75]" in read(tmp_path).text


def test_stages_start_after_the_last_step_of_the_one_before():
    rows = [{"step": 4, "stage": "a"}, {"step": 9, "stage": "a"}, {"step": 14, "stage": "b"}]
    assert stage_starts(rows) == [("a", 0), ("b", 10)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (41.2, "41 s"), (512.3, "8 min 32 s"), (59.7, "1 min 00 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
