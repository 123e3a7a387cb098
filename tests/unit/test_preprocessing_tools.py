"""Answer lists, document frequencies, negative samples, and the data sets that ship in packages."""

import json
import math
import pickle
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from preprocessing import answer_list, cider_frequencies, esc10, negative_samples, nlvr, spoken_digits, tux_paint
from preprocessing.official import write_manifests
from unival.data.answers import read_answer_types, read_answers
from unival.errors import UserError
from unival.metrics.cider import CiderD, DocumentFrequencies


def write(root: Path, name: str, value: Any) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_rows(root: Path, name: str, rows: Sequence[dict[str, Any]]) -> str:
    return str(write(root, name, "".join(json.dumps({"uid": str(i), **row}) + "\n" for i, row in enumerate(rows))))


def name_of(entry: dict[str, Any]) -> str:
    return "/".join(Path(entry["manifest"]).with_suffix("").parts[-2:])


def run(main: Callable[[Sequence[str]], None], *arguments: object) -> None:
    main([str(argument) for argument in arguments])


def test_the_answer_list_counts_targets_after_normalisation(tmp_path: Path, capsys: Any) -> None:
    answers = ["yes"] * 3 + ["two", "2", "The cat"]
    manifest = write_rows(tmp_path, "m.jsonl", [{"answers": [answer, "other"]} for answer in answers] + [{}])
    run(answer_list.main, manifest, "--min-count", 2, "--out", tmp_path / "list.json", "--json")
    assert json.loads((tmp_path / "list.json").read_text()) == {"yes": 0, "2": 1}
    assert json.loads(capsys.readouterr().out)["answers"] == 2
    assert read_answers(tmp_path / "list.json") == ("yes", "2")
    run(answer_list.main, manifest, "--top", 3, "--out", tmp_path / "top.txt")
    assert read_answers(tmp_path / "top.txt") == ("yes", "2", "cat")
    with pytest.raises(UserError, match="no answer occurs 9 times"):
        run(answer_list.main, manifest, "--min-count", 9, "--out", tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_document_frequencies_count_a_row_once_after_tokenisation(tmp_path: Path) -> None:
    rows = [{"captions": ["A cat's toy.", "a toy"]}, {"caption": "The cat."}]
    manifest = write_rows(tmp_path, "m.jsonl", rows)
    run(cider_frequencies.main, manifest, "--out", tmp_path / "ptb.json")
    counted = DocumentFrequencies.load(tmp_path / "ptb.json")
    assert counted.num_documents == 2
    assert {n: counted.counts[n] for n in [("cat",), ("a",), ("cat", "'s"), ("toy",)]} == {
        ("cat",): 2,
        ("a",): 1,
        ("cat", "'s"): 1,
        ("toy",): 1,
    }
    run(cider_frequencies.main, manifest, "--tokenizer", "simple", "--out", tmp_path / "simple.json")
    assert ("cats",) in DocumentFrequencies.load(tmp_path / "simple.json").counts


def test_frequencies_name_a_row_without_captions(tmp_path: Path) -> None:
    manifest = write_rows(tmp_path, "m.jsonl", [{"captions": ["a cat"]}, {"question": "?"}])
    with pytest.raises(UserError, match=r"no `captions` or `caption`.*row 2"):
        run(cider_frequencies.main, manifest, "--out", tmp_path / "ptb.json")


def test_the_original_s_cached_frequencies_give_the_same_scores(tmp_path: Path) -> None:
    references = [["a cat on a mat", "a cat"], ["a dog runs"]]
    own = DocumentFrequencies.from_references(references)
    cached = defaultdict(float, {ngram: float(count) for ngram, count in own.counts.items()})
    path = tmp_path / "coco-valid-words.p"
    path.write_bytes(pickle.dumps({"document_frequency": cached, "ref_len": np.float64(2)}, protocol=2))
    run(cider_frequencies.main, "--from-original", path, "--out", tmp_path / "converted.json")
    converted = DocumentFrequencies.load(tmp_path / "converted.json")
    assert converted == own
    assert math.isclose(
        CiderD(references, converted).score(["a cat", "a dog"])[0], CiderD(references).score(["a cat", ""])[0]
    )


def test_frequencies_refuse_a_hostile_pickle(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(b"\x80\x02cposix\nsystem\nU\x05touch\x85R.")
    with pytest.raises(UserError, match=r"posix\.system"):
        DocumentFrequencies.load(tmp_path / "x.p")


def test_negative_samples_are_the_original_s_three_files(tmp_path: Path) -> None:
    rows = [
        {"captions": ["a cat", "a dog"], "objects": ["cat", "dog"]},
        {"caption": "a cat", "objects": ["cat"]},
        {"answers": ["2"], "question_type": "how many"},
        {"answers": ["2"], "question_type": "how many"},
        {"answers": ["2"], "question_type": "what is"},
        {"answers": ["blue"]},
    ]
    run(negative_samples.main, write_rows(tmp_path, "m.jsonl", rows), "--out", tmp_path / "negative_sample")
    folder = tmp_path / "negative_sample"
    assert (folder / "all_captions.txt").read_text() == "a cat\na dog\n"
    assert read_answers(folder / "object.txt") == ("cat", "dog")
    assert read_answer_types(folder / "type2ans.json") == {"other": ("blue",), "how many": ("2",)}


def test_nlvr_is_cut_by_number_and_marks_new_sentences(tmp_path: Path) -> None:
    def entry(identifier: str, sentence: str, label: Any) -> str:
        boxes = [
            {"x": 20, "y": 30, "w": 10, "h": 12, "shape": "square", "color": "yellow", "box": 0},
            {"x": 170, "y": 30, "w": 20, "h": 20, "shape": "circle", "color": "blue", "box": 1},
            {"x": 190, "y": 60, "w": 20, "h": 20, "shape": "circle", "color": "blue", "box": 1},
        ]
        image = f"images/{identifier}.png"
        write(tmp_path, image, "x")
        row = {"identifier": identifier, "sentence": sentence, "label": label, "image": image, "boxes": boxes}
        return json.dumps(row)

    write(
        tmp_path, "dev.jsonl", "\n".join(entry(f"{n}-{k}", f"sentence {n}.", k == 0) for n in range(20) for k in (0, 1))
    )
    write(tmp_path, "test.jsonl", entry("90-0", "sentence 3.", "true") + "\n" + entry("91-0", "A new one.", "false"))
    written = {name_of(e): e["rows"] for e in write_manifests(nlvr.build(tmp_path), tmp_path, tmp_path)}
    assert written["nlvr/train"] + written["nlvr/val"] == 40
    assert written["nlvr/val"] > 0
    assert (written["nlvr/test"], written["nlvr/test_new"], written["nlvr_grounding/test"]) == (2, 1, 2)
    rows = {name: list(part) for name, part in nlvr.build(tmp_path).items()}
    numbers = {split: {row["uid"].split("-")[0] for row in rows[f"nlvr/{split}"]} for split in ("train", "val")}
    assert not numbers["train"] & numbers["val"]
    assert [row["label"] for row in rows["nlvr/test"]] == ["yes", "no"]
    assert rows["nlvr/test_new"][0]["text"] == "A new one."
    box = rows["nlvr_grounding/test"][0]
    assert (box["text"], box["box"]) == ("the yellow square in the left box", [20, 30, 30, 42])


def test_esc10_never_shares_a_fold_and_asks_fair_questions(tmp_path: Path) -> None:
    lines = ["file,fold,label"]
    for number in range(60):
        label = sorted(esc10.CAPTIONS)[number % 10]
        lines.append(f"audio/{number % 3 + 1}-{number}-A.ogg,{number % 3 + 1},{label}")
        write(tmp_path, f"audio/{number % 3 + 1}-{number}-A.ogg", "x")
    write(tmp_path, "meta.csv", "\n".join(lines))
    written = {name_of(e): e["rows"] for e in write_manifests(esc10.build(tmp_path), tmp_path, tmp_path)}
    assert written == {"esc10/train": 40, "esc10/test": 20, "esc10_qa/train": 80, "esc10_qa/test": 40}
    rows = {name: list(part) for name, part in esc10.build(tmp_path).items()}
    assert all(row["uid"].startswith("3-") for row in rows["esc10/test"])
    dog = next(row for row in rows["esc10/train"] if row["label_name"] == "dog bark")
    assert sorted(dog["captions"]) == sorted(esc10.CAPTIONS["dog bark"].split("|"))
    asked = {(row["question"], row["answers"][0]) for row in rows["esc10_qa/train"] if row["audio"] == dog["audio"]}
    assert ("what is heard?", "dog bark") in asked
    yesno = [
        row["answers"][0]
        for name in ("train", "test")
        for row in rows[f"esc10_qa/{name}"]
        if len(row["answers"][0]) < 4
    ]
    assert {"yes", "no"} <= set(yesno)
    write(tmp_path, "meta.csv", "file,fold,label\na.ogg,1,dog\n")
    with pytest.raises(UserError, match="unknown label 'dog'"):
        list(esc10.build(tmp_path)["esc10/train"])


def test_spoken_digits_by_take_or_by_speaker(tmp_path: Path) -> None:
    lines = ["file,digit,speaker,index"]
    for speaker in ("george", "theo"):
        for index in (0, 4, 5):
            lines.append(f"audio/7_{speaker}_{index}.flac,7,{speaker},{index}")
            write(tmp_path, f"audio/7_{speaker}_{index}.flac", "x")
    write(tmp_path, "meta.csv", "\n".join(lines))
    rows = {name: list(part) for name, part in spoken_digits.build(tmp_path).items()}
    assert [row["uid"] for row in rows["fsdd/train"]] == ["7_george_5", "7_theo_5"]
    assert rows["fsdd/train"][1]["captions"] == ["the number seven, spoken by theo", "theo says seven"]
    assert [(row["question"], row["answers"]) for row in rows["fsdd_qa/train"]][:2] == [
        ("which digit is said?", ["seven"]),
        ("who is speaking?", ["george"]),
    ]
    held = {name: list(part) for name, part in spoken_digits.build(tmp_path, "theo").items()}
    assert {row["speaker"] for row in held["fsdd/test"]} == {"theo"}
    assert {row["speaker"] for row in held["fsdd/train"]} == {"george"}
    assert {row["question_type"] for row in held["fsdd_qa/test"]} == {"digit"}
    with pytest.raises(UserError, match="no speaker 'teo'"):
        spoken_digits.build(tmp_path, "teo")


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 60 little stamps: ellipses off their centre on a transparent ground."""
    root = tmp_path_factory.mktemp("stamps")
    for number in range(60):
        kind = ("animals", "food", "town")[number % 3]
        path = root / kind / f"thing{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        ImageDraw.Draw(picture).ellipse((10, 5, 34, 20), fill=(250, 4 * number, 20, 255))
        picture.save(path)
        path.with_suffix(".txt").write_text(f"A thing number {number}.\nde.utf8=Ein Ding.\n", encoding="utf-8")
    (root / "symbols").mkdir()
    Image.new("RGBA", (8, 8)).save(root / "symbols" / "a.png")
    write(root, "symbols/a.txt", "A letter.")
    return root


def test_tux_paint_parts_share_no_caption(stamps: Path) -> None:
    parts = tux_paint.read_stamps(stamps)
    names = {part: {stamp.name for stamp in found} for part, found in parts.items()}
    assert names.pop("known") == names["train"]
    assert sum(map(len, names.values())) == 60
    assert not names["train"] & names["test"]
    assert not names["train"] & names["val"]
    assert all("letter" not in name for name in names["train"])


def test_tux_paint_scenes_are_true_and_repeatable(stamps: Path, tmp_path: Path) -> None:
    entries = tux_paint.build(stamps, tmp_path / "a", {"train": 30}, image_px=96)
    assert entries == [
        {**e, "manifest": e["manifest"].replace("/b/", "/a/")}
        for e in tux_paint.build(stamps, tmp_path / "b", {"train": 30}, 96)
    ]
    rows = {name: read(tmp_path / "a", name) for name in ("caption", "vqa", "grounding", "entailment")}
    by_image: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows["grounding"]:
        by_image[row["image"]].append(row)
    for caption in rows["caption"]:
        things = by_image[caption["image"]]
        assert [f"the {name}" for name in caption["objects"]] == [row["text"] for row in things]
        pixels = np.asarray(Image.open(tmp_path / "a" / "tux_paint" / caption["image"]).convert("RGB")).astype(int)
        for row in things:
            x0, y0, x1, y1 = row["box"]
            assert 0 <= x0 < x1 <= 96
            assert 0 <= y0 < y1 <= 96
            # The middle of a box is its ellipse, which is red; the corners of the picture are background.
            middle = pixels[(y0 + y1) // 2, (x0 + x1) // 2]
            assert middle[0] > 240
            assert middle[2] < 40
        boxes = [row["box"] for row in things]
        is_row = " to the left of " in caption["captions"][0]
        for first, second in pairwise(boxes):
            assert first[2] <= second[0] if is_row else first[3] <= second[1]
    counts = [row for row in rows["vqa"] if row["question_type"] == "count"]
    assert [int(row["answers"][0]) for row in counts] == [len(by_image[row["image"]]) for row in counts]
    truths = {row["image"]: row["captions"][0] for row in rows["caption"]}
    assert all((row["text"] == truths[row["image"]]) == (row["label"] == "yes") for row in rows["entailment"])
    assert {row["question_type"] for row in rows["vqa"]} >= {"count", "color", "yesno", "what", "where", "class"}


def read(root: Path, task: str) -> list[dict[str, Any]]:
    text = (root / "tux_paint" / f"{task}_train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_tux_paint_says_which_folder_it_wants(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captioned stamp"):
        tux_paint.read_stamps(tmp_path)
