"""Scripts for image data sets on miniatures of the official files; every field that a task reads is checked."""

import io
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from preprocessing import (
    clotho,
    coco,
    gqa,
    join_manifests,
    negative_samples,
    nocaps,
    ok_vqa,
    refcoco,
    snli_ve,
    visual_genome,
    vizwiz,
    vqa_v2,
    web_captions,
)
from preprocessing.official import Row, main, write_manifests
from unival.data.manifest import ManifestRows
from unival.errors import UserError


def write(root: Path, name: str, value: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def touch(root: Path, *names: str) -> None:
    for name in names:
        write(root, name, "x")


def written(manifests: dict[str, Iterable[Row]], root: Path) -> dict[str, list[Row]]:
    """Write all manifests as the command does and read them back as training does."""
    entries = write_manifests(manifests, root, root)
    for entry in entries:
        assert len(ManifestRows(entry["manifest"])) == entry["rows"]
    return {"/".join(Path(e["manifest"]).with_suffix("").parts[-2:]): read(Path(e["manifest"])) for e in entries}


def read(manifest: Path) -> list[Row]:
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]


def test_coco_puts_restval_into_training_and_keeps_captions_raw(tmp_path: Path) -> None:
    def image(cocoid: int, split: str, folder: str, captions: list[str]) -> dict[str, Any]:
        name = f"COCO_{folder}_{cocoid:012d}.jpg"
        touch(tmp_path, f"{folder}/{name}")
        sentences = [{"tokens": [], "raw": text, "sentid": number} for number, text in enumerate(captions)]
        return {"filepath": folder, "filename": name, "cocoid": cocoid, "split": split, "sentences": sentences}

    images = [
        image(9, "train", "train2014", ["A cat.", "One\nCat "]),
        image(25, "restval", "val2014", ["A dog."]),
        image(36, "val", "val2014", ["A bus."]),
        image(42, "test", "val2014", ["A car.", "The car."]),
    ]
    write(tmp_path, "dataset_coco.json", {"images": images, "dataset": "coco"})
    rows = written(coco.build(tmp_path), tmp_path)
    assert [(row["uid"], row["captions"]) for row in rows["coco/train"]] == [
        ("9-0", ["A cat."]),
        ("9-1", ["One Cat"]),
        ("25-0", ["A dog."]),
    ]
    assert rows["coco/train_images"][0]["captions"] == ["A cat.", "One Cat"]
    assert rows["coco/test"] == [
        {
            "uid": "42",
            "image": "val2014/COCO_val2014_000000000042.jpg",
            "image_id": 42,
            "captions": ["A car.", "The car."],
            "dataset": "coco",
        }
    ]
    annotations = [{"image_id": 42, "category_id": kind} for kind in (3, 1, 3)]
    categories = [{"id": 1, "name": "dog"}, {"id": 3, "name": "car"}]
    write(tmp_path, "instances.json", {"annotations": annotations, "categories": categories})
    rows = written(coco.build(tmp_path, [str(tmp_path / "instances.json")]), tmp_path)
    assert rows["coco/test"][0]["objects"] == ["car", "dog"]
    assert "objects" not in rows["coco/val"][0]
    assert negative_samples.collect(rows["coco/test"])[1] == ["car", "dog"]


def test_nocaps_is_cut_by_domain(tmp_path: Path) -> None:
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480, "domain": domain}
        for number, domain in enumerate(("in-domain", "near-domain", "out-domain", "out-domain"))
    ]
    annotations = [{"image_id": number, "id": 9, "caption": f"thing {number}"} for number in range(4)]
    write(tmp_path, "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    write(tmp_path, "nocaps_test_image_info.json", {"images": [{**images[0], "domain": None}]})
    touch(tmp_path, *(f"val/{number}.jpg" for number in range(4)), "test/0.jpg")
    rows = written(nocaps.build(tmp_path), tmp_path)
    assert {name: len(part) for name, part in rows.items()} == {
        "nocaps/val": 4,
        "nocaps/val_in": 1,
        "nocaps/val_near": 1,
        "nocaps/val_out": 2,
        "nocaps/test": 1,
    }
    assert rows["nocaps/val_near"][0]["captions"] == ["thing 1"]
    assert rows["nocaps/val_near"][0]["image_id"] == 1
    assert "captions" not in rows["nocaps/test"][0]


def vqa_files(root: Path, prefix: str, part: str, annotated: bool = True) -> None:
    question = {"image_id": 458752, "question": "What is this?", "question_id": 458752000}
    questions = {"questions": [question]}
    stem = {"v2": "v2_OpenEnded_mscoco", "ok": "OpenEnded_mscoco"}[prefix]
    write(root, f"{stem}_{part}_questions.json", questions)
    given = ["bag", "net", "net", "net", "netting", "net", "mesh", "net", "net", "mesh"]
    annotation = {
        "question_id": 458752000,
        "image_id": 458752,
        "question_type": "what is this",
        "answer_type": "other",
        "multiple_choice_answer": "net",
        "answers": [{"answer": answer, "answer_id": i, "answer_confidence": "yes"} for i, answer in enumerate(given)],
    }
    if prefix == "ok":
        del annotation["multiple_choice_answer"]
    if annotated:
        name = {"v2": "v2_mscoco", "ok": "mscoco"}[prefix]
        write(root, f"{name}_{part}_annotations.json", {"annotations": [annotation]})
    pictures = part.replace("test-dev", "test")
    touch(root, f"{pictures}/COCO_{pictures}_000000458752.jpg")


def test_vqa_lists_ten_answers_the_common_one_first_and_expands_pairs(tmp_path: Path) -> None:
    for part, annotated in (("train2014", True), ("test-dev2015", False)):
        vqa_files(tmp_path, "v2", part, annotated)
    write(tmp_path, "answers.json", {"net": 0, "mesh": 1})
    rows = written(vqa_v2.build(tmp_path, str(tmp_path / "answers.json")), tmp_path)
    train = rows["vqav2/train_questions"][0]
    assert train["answers"] == ["net"] * 6 + ["bag", "netting", "mesh", "mesh"]
    assert train["image"] == "train2014/COCO_train2014_000000458752.jpg"
    assert (train["question_id"], train["question_type"], train["answer_type"]) == (458752000, "what is this", "other")
    pairs = [(row["answers"], row["confidences"]) for row in rows["vqav2/train"]]
    assert pairs == [(["net"], [1.0]), (["mesh"], [pytest.approx(0.6)])]
    assert rows["vqav2/testdev"][0]["image"] == "test2015/COCO_test2015_000000458752.jpg"
    assert "answers" not in rows["vqav2/testdev"][0]


def test_vqa_trainval_needs_both_and_questions_their_annotations(tmp_path: Path) -> None:
    vqa_files(tmp_path, "v2", "train2014")
    write(tmp_path, "answers.json", {"net": 0})
    assert "vqav2/trainval" not in vqa_v2.build(tmp_path, str(tmp_path / "answers.json"))
    vqa_files(tmp_path, "v2", "val2014")
    assert "vqav2/trainval" in vqa_v2.build(tmp_path, str(tmp_path / "answers.json"))
    write(tmp_path, "v2_mscoco_train2014_annotations.json", {"annotations": []})
    with pytest.raises(UserError, match=r"no annotation of question 458752000.*train2014_annotations"):
        list(vqa_v2.build(tmp_path)["vqav2/train_questions"])


def test_ok_vqa_has_the_same_format_without_a_chosen_answer(tmp_path: Path) -> None:
    vqa_files(tmp_path, "ok", "val2014")
    row = written(ok_vqa.build(tmp_path), tmp_path)["okvqa/val"][0]
    assert row["answers"][:6] == ["net"] * 6
    assert row["dataset"] == "okvqa"


def test_vizwiz_is_named_by_its_pictures(tmp_path: Path) -> None:
    answers = [{"answer": answer, "answer_confidence": "yes"} for answer in ("unanswerable", "soda", "soda")]
    name = "VizWiz_val_00000000.jpg"
    entry = {"image": name, "question": "What is\nthis?", "answers": answers, "answer_type": "other", "answerable": 1}
    write(tmp_path, "Annotations/val.json", [entry])
    write(tmp_path, "Annotations/test.json", [{"image": "VizWiz_test_00000000.jpg", "question": "What?"}])
    touch(tmp_path, f"val/{name}", "test/VizWiz_test_00000000.jpg")
    rows = written(vizwiz.build(tmp_path), tmp_path)
    assert rows["vizwiz/val"][0]["answers"] == ["soda", "soda", "unanswerable"]
    assert rows["vizwiz/val"][0]["question"] == "What is this?"
    assert rows["vizwiz/test"] == [
        {
            "uid": "VizWiz_test_00000000.jpg",
            "image": "test/VizWiz_test_00000000.jpg",
            "image_id": "VizWiz_test_00000000.jpg",
            "question": "What?",
            "dataset": "vizwiz",
        }
    ]


def test_gqa_reads_single_files_and_the_folder_of_all_questions(tmp_path: Path) -> None:
    entry = {"imageId": "n2", "question": "Is it dark?", "answer": "yes", "types": {"structural": "verify"}}
    write(tmp_path, "testdev_balanced_questions.json", {"0293": entry})
    for number in range(2):
        write(tmp_path, f"train_all_questions/train_all_questions_{number}.json", {f"0{number}": entry})
    write(tmp_path, "submission_all_questions.json", {"7": {"imageId": "n2", "question": "Why?"}})
    touch(tmp_path, "images/n2.jpg")
    rows = written(gqa.build(tmp_path), tmp_path)
    assert [row["uid"] for row in rows["gqa/train_all"]] == ["00", "01"]
    row = rows["gqa/testdev_balanced"][0]
    assert (row["image"], row["question_id"], row["answers"]) == ("images/n2.jpg", "0293", ["yes"])
    assert row["question_type"] == "verify"
    assert "answers" not in rows["gqa/submission_all"][0]


def python_2_pickle(value: Any) -> bytes:
    """Pickle plain data in protocol 2 as Python 2's cPickle does: byte strings, memo entries, no framing."""
    out = io.BytesIO()
    memo = iter(range(10_000))

    def put() -> None:
        out.write(b"r" + struct.pack("<I", next(memo)))

    def save(node: Any) -> None:
        if isinstance(node, dict):
            out.write(b"}")
            put()
            out.write(b"(")
            for key, item in node.items():
                save(key)
                save(item)
            out.write(b"u")
        elif isinstance(node, list):
            out.write(b"]")
            put()
            out.write(b"(")
            for item in node:
                save(item)
            out.write(b"e")
        elif isinstance(node, int):
            out.write(b"J" + struct.pack("<i", node))
        else:
            data = node.encode()
            out.write(b"U" + bytes([len(data)]) + data)
            put()

    out.write(b"\x80\x02")
    save(value)
    out.write(b".")
    return out.getvalue()


def refcoco_files(root: Path, folder: str, refs: bytes, name: str = "refs(unc).p") -> None:
    image = {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 427}
    annotation = {"id": 1719310, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 177.42], "category_id": 1}
    write(root, f"{folder}/instances.json", {"images": [image], "annotations": [annotation]})
    (root / folder / name).write_bytes(refs)
    touch(root, "train2014/COCO_train2014_000000581857.jpg")


def a_ref(split: str, texts: list[str], first_id: int) -> dict[str, Any]:
    return {
        "sent_ids": [first_id + i for i in range(len(texts))],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": first_id,
        "image_id": 581857,
        "split": split,
        "sentences": [
            {"tokens": text.split(), "raw": text, "sent_id": first_id + i, "sent": text} for i, text in enumerate(texts)
        ],
        "category_id": 1,
    }


def test_refcoco_reads_the_python_2_pickle_as_data(tmp_path: Path) -> None:
    refs = [a_ref("train", ["the lady in blue", "lady"], 0), a_ref("testA", ["café table"], 7)]
    refcoco_files(tmp_path, "refcoco", python_2_pickle(refs))
    refcoco_files(tmp_path, "refcocog", python_2_pickle([a_ref("val", ["the lady"], 3)]), "refs(umd).p")
    rows = written(refcoco.build(tmp_path), tmp_path)
    assert {name: len(part) for name, part in rows.items()} == {
        "refcoco/testA": 1,
        "refcoco/train": 2,
        "refcocog/val": 1,
    }
    row = rows["refcoco/train"][1]
    assert row["box"] == pytest.approx([103.93, 299.99, 238.15, 477.41])
    assert (row["uid"], row["text"], row["width"], row["height"]) == ("1", "lady", 640, 427)
    assert row["image"] == "train2014/COCO_train2014_000000581857.jpg"
    assert rows["refcoco/testA"][0]["text"] == "café table"


def test_refcoco_runs_nothing_of_a_hostile_pickle(tmp_path: Path) -> None:
    refcoco_files(tmp_path, "refcoco", b"\x80\x02cposix\nsystem\nU\x05touch\x85R.")
    with pytest.raises(UserError, match=r"posix\.system"):
        refcoco.build(tmp_path)


def test_refcoco_names_a_ref_without_its_object(tmp_path: Path) -> None:
    refcoco_files(tmp_path, "refcoco", python_2_pickle([{**a_ref("train", ["a"], 5), "ann_id": 2}]))
    with pytest.raises(UserError, match="ref 5 names an object"):
        written(refcoco.build(tmp_path), tmp_path)


def test_snli_ve_translates_labels_and_leaves_undecided_pairs_out(tmp_path: Path) -> None:
    lines = []
    for number, label in enumerate(("entailment", "contradiction", "neutral", "-")):
        pair = {"gold_label": label, "pairID": f"1.jpg#0r{number}", "Flickr30K_ID": "1"}
        lines.append(json.dumps(pair | {"sentence1": "Two women.", "sentence2": "Sisters."}))
    write(tmp_path, "snli_ve_dev.jsonl", "\n".join(lines))
    touch(tmp_path, "flickr30k-images/1.jpg")
    rows = written(snli_ve.build(tmp_path), tmp_path)["snli_ve/dev"]
    assert [row["label"] for row in rows] == ["yes", "no", "maybe"]
    assert (rows[0]["uid"], rows[0]["text"], rows[0]["premise"]) == ("1.jpg#0r0", "Sisters.", "Two women.")


def test_web_lists_find_pictures_by_their_place_and_skip_dead_ones(tmp_path: Path) -> None:
    write(tmp_path, "Train_GCC-training.tsv", "a cat\thttp://a/1.jpg\na dog\thttp://a/2.jpg\na bus\thttp://a/3.jpg\n")
    write(tmp_path, "cc12m.tsv", "http://a/1.jpg\t<PERSON> at a table\n")
    write(tmp_path, "SBU_captioned_photo_dataset_captions.txt", "sun\n")
    touch(tmp_path, "cc3m_train/00000/000000000.jpg", "cc3m_train/00000/000000002.jpg")
    touch(tmp_path, "sbu_train/00000/000000000.jpg")
    touch(tmp_path, "cc12m_train/00000/000000000.jpg")
    manifests = web_captions.build(tmp_path)
    entries = write_manifests(manifests, tmp_path, tmp_path, "skip")
    assert [(e["rows"], e["skipped"]) for e in entries] == [(2, 1), (1, 0), (1, 0)]
    rows = read(tmp_path / "cc3m/train.jsonl")
    assert [(row["uid"], row["captions"]) for row in rows] == [("cc3m_train-0", ["a cat"]), ("cc3m_train-2", ["a bus"])]
    assert json.loads((tmp_path / "cc12m/train.jsonl").read_text())["captions"] == ["<PERSON> at a table"]
    with pytest.raises(UserError, match="1 of 3 media are no file"):
        write_manifests(web_captions.build(tmp_path), tmp_path, tmp_path, only=["cc3m/train"])
    late = list(web_captions.rows("sbu/train", tmp_path / "SBU_captioned_photo_dataset_captions.txt"))
    assert late[0]["image"] == "sbu_train/00000/000000000.jpg"


def test_a_header_that_img2dataset_wants_is_no_row(tmp_path: Path) -> None:
    write(tmp_path, "cc12m.tsv", "url\tcaption\nhttp://a/1.jpg\ta red square\n")
    (row,) = web_captions.build(tmp_path)["cc12m/train"]
    assert (row["image"], row["captions"]) == ("cc12m_train/00000/000000000.jpg", ["a red square"])
    write(tmp_path, "SBU_captioned_photo_dataset_captions.txt", "caption\n")
    (row,) = web_captions.build(tmp_path)["sbu/train"]
    assert row["captions"] == ["caption"]


def test_web_list_with_a_broken_line_names_it(tmp_path: Path) -> None:
    write(tmp_path, "cc12m.tsv", "http://a\tb\nhttp://c\n")
    with pytest.raises(UserError, match=r"1 columns.*cc12m.tsv:2"):
        list(web_captions.build(tmp_path)["cc12m/train"])


def visual_genome_files(root: Path) -> None:
    urls = [
        "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg",
        "https://cs.stanford.edu/people/rak248/VG_100K/2.jpg",
    ]
    images = [
        {"image_id": i + 1, "url": url, "width": 800, "height": 600, "coco_id": [None, 77][i]}
        for i, url in enumerate(urls)
    ]
    write(root, "image_data.json", images)
    region = {
        "region_id": 1382,
        "image_id": 1,
        "phrase": "the clock  is green",
        "x": 421,
        "y": -3,
        "width": 82,
        "height": 139,
    }
    regions = [region, {**region, "region_id": 5, "x": 900}, {**region, "region_id": 6, "image_id": 2}]
    write(root, "region_descriptions.json", [{"id": 1, "regions": regions}])
    qas = [
        {"qa_id": 986768, "image_id": 1, "question": "What color is the clock?", "answer": "Green."},
        {"qa_id": 986769, "image_id": 1, "question": "Why?", "answer": "To tell the time."},
    ]
    write(root, "question_answers.json", [{"id": 1, "qas": qas}])
    touch(root, "VG_100K_2/1.jpg", "VG_100K/2.jpg")


def test_visual_genome_clips_regions_cleans_answers_and_leaves_test_pictures_out(tmp_path: Path) -> None:
    visual_genome_files(tmp_path)
    write(tmp_path, "coco_test.jsonl", json.dumps({"uid": "77", "image_id": 77}))
    write(tmp_path, "answers.txt", "green\n")
    manifests = visual_genome.build(tmp_path, [str(tmp_path / "coco_test.jsonl")], str(tmp_path / "answers.txt"))
    rows = written(manifests, tmp_path)
    assert len(rows["visual_genome/regions"]) == 1  # one lies outside its picture, one picture is COCO's
    region = rows["visual_genome/regions"][0]
    assert region["box"] == [421, 0, 503, 136]
    assert (region["text"], region["image"]) == ("the clock is green", "VG_100K_2/1.jpg")
    assert (region["width"], region["height"]) == (800, 600)
    assert rows["visual_genome/captions"][0]["captions"] == ["the clock is green"]
    assert [row["answers"] for row in rows["visual_genome/qa"]] == [["Green."], ["To tell the time."]]
    pair = rows["visual_genome/qa_pairs"]
    assert [(row["uid"], row["answers"], row["confidences"]) for row in pair] == [("986768", ["green"], [1.0])]


def test_visual_genome_leaves_out_pictures_that_are_named_as_text(tmp_path: Path, capsys: Any) -> None:
    visual_genome_files(tmp_path)
    write(tmp_path, "coco_test.jsonl", json.dumps({"uid": "77", "image_id": "77"}))
    rows = written(visual_genome.build(tmp_path, [str(tmp_path / "coco_test.jsonl")]), tmp_path)
    assert {row["image_id"] for row in rows["visual_genome/regions"]} == {1}
    assert "1 of 2 pictures are left out" in capsys.readouterr().err


def test_visual_genome_keeps_all_pictures_by_default(tmp_path: Path) -> None:
    visual_genome_files(tmp_path)
    assert len(written(visual_genome.build(tmp_path), tmp_path)["visual_genome/regions"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ('{"images": [{"split": "val"}]}', "no field 'cocoid'"), ("{}", "no field 'images'")],
)
def test_a_wrong_official_file_is_named_and_nothing_is_written(content: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, "dataset_coco.json", content)
    with pytest.raises(UserError, match=message) as caught:
        write_manifests(coco.build(tmp_path), tmp_path, tmp_path, only=["coco/val"])
    assert "dataset_coco.json" in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["dataset_coco.json"]


def test_a_missing_official_file_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset_coco"):
        coco.build(tmp_path)
    with pytest.raises(UserError, match="v2_OpenEnded_mscoco_train2014_questions"):
        vqa_v2.build(tmp_path)


def test_the_command_prints_json_and_ends_with_code_2_on_wrong_input(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, "Annotations/test.json", [{"image": "a.jpg", "question": "What?"}])
    with pytest.raises(SystemExit) as stop:
        main("doc", vizwiz.build, argv=[str(tmp_path), "--json"])
    assert stop.value.code == 2
    assert "media are no file" in capsys.readouterr().err
    touch(tmp_path, "test/a.jpg")
    with pytest.raises(SystemExit) as stop:
        main("doc", vizwiz.build, argv=[str(tmp_path), "--json", "--out", str(tmp_path / "new")])
    assert stop.value.code == 0
    entry = json.loads(capsys.readouterr().out)[0]
    assert (entry["rows"], entry["media"], entry["skipped"]) == (1, 1, 0)
    with pytest.raises(SystemExit) as stop:
        main("doc", vizwiz.build, argv=[str(tmp_path), "--only", "vizwiz/tset"])
    assert stop.value.code == 2
    assert "did you mean 'vizwiz/test'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "build", "message"),
    [
        ("SBU_captioned_photo_dataset_captions.txt", b"caf\xe9\n", web_captions.build, "not UTF-8 text at byte 3"),
        ("dataset_coco.json", b"[1, 2]", coco.build, "not what is expected: TypeError"),
        ("clotho_captions_evaluation.csv", b"file_name,caption_1\xff", clotho.build, "not UTF-8 text at byte 19"),
    ],
)
def test_another_file_under_an_official_name_is_one_message(
    name: str, content: bytes, build: Any, message: str, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main("doc", build, argv=[str(tmp_path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "official file" in error


def test_manifests_lie_beside_the_folder_that_was_named_even_if_it_is_a_link(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, "big/mscoco/Annotations/test.json", [{"image": "a.jpg", "question": "What?"}])
    touch(tmp_path, "big/mscoco/test/a.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/vw").symlink_to(tmp_path / "big/mscoco")
    with pytest.raises(SystemExit):
        main("doc", vizwiz.build, argv=[str(tmp_path / "data/vw")])
    assert len(ManifestRows(tmp_path / "data/vizwiz/test.jsonl")) == 1
    assert not (tmp_path / "big/vizwiz").exists()


def test_two_rows_with_one_uid_are_refused(tmp_path: Path) -> None:
    rows = [{"uid": "1", "text": "a"}, {"uid": 1, "text": "b"}]
    with pytest.raises(UserError, match="same uid"):
        write_manifests({"m/x": rows}, tmp_path, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_data_sets_on_the_same_pictures_link_them(tmp_path: Path) -> None:
    """A path may not leave the folder of its manifest, so the pictures' folder is linked beside it."""
    vqa_files(tmp_path / "coco", "ok", "val2014")
    for _ in range(2):  # the second time the link is there
        write_manifests(ok_vqa.build(tmp_path / "coco"), tmp_path / "coco", tmp_path)
    link = tmp_path / "okvqa" / "val2014"
    assert link.is_symlink()
    assert link.readlink() == Path("../coco/val2014")
    row = ManifestRows(tmp_path / "okvqa" / "val.jsonl")[0]
    assert Path(row["image"]).read_text() == "x"
    link.unlink()
    link.mkdir()
    with pytest.raises(UserError, match="something else than the media"):
        write_manifests(ok_vqa.build(tmp_path / "coco"), tmp_path / "coco", tmp_path)


def test_joined_manifests_keep_their_rows_and_find_their_media(tmp_path: Path) -> None:
    vqa_files(tmp_path / "coco", "ok", "val2014")
    write_manifests(ok_vqa.build(tmp_path / "coco"), tmp_path / "coco", tmp_path)
    write(tmp_path, "other/rows.jsonl", json.dumps({"uid": 458752000, "image": "a.jpg", "answers": ["x"]}))
    touch(tmp_path, "other/a.jpg")
    manifests = [tmp_path / "okvqa" / "val.jsonl", tmp_path / "other" / "rows.jsonl"]
    join_manifests.main([*map(str, manifests), "--out", str(tmp_path / "pretrain" / "questions.jsonl")])
    rows = ManifestRows(tmp_path / "pretrain" / "questions.jsonl")
    assert [row["uid"] for row in (rows[0], rows[1])] == ["okvqa/val/458752000", "other/rows/458752000"]
    assert [Path(rows[i]["image"]).read_text() for i in range(2)] == ["x", "x"]
    assert rows[1]["answers"] == ["x"]
