"""Result files in the formats of the benchmarks."""

import csv
import json
from pathlib import Path

import pytest

from unival.atomic import replacing
from unival.errors import UserError
from unival.evaluation.submission import KINDS, write_submission


def test_captions_are_the_official_list_with_integer_ids(tmp_path: Path) -> None:
    rows = [
        {"uid": "391895-0", "image_id": 391895, "prediction": "a man on a bike"},
        {"uid": "60623-0", "image_id": "60623", "prediction": "une fille à table"},
    ]
    assert write_submission("coco", rows, tmp_path / "new" / "captions.json") == 2
    text = (tmp_path / "new" / "captions.json").read_text(encoding="utf-8")
    assert "à" in text
    assert json.loads(text) == [
        {"image_id": 391895, "caption": "a man on a bike"},
        {"image_id": 60623, "caption": "une fille à table"},
    ]


@pytest.mark.parametrize(
    ("kind", "row", "entry"),
    [
        ("nocaps", {"image_id": 0, "prediction": "a cat"}, {"image_id": 0, "caption": "a cat"}),
        ("msrvtt", {"video_id": "video7010", "prediction": "a"}, {"image_id": "video7010", "caption": "a"}),
        ("vqa", {"question_id": 262148000, "prediction": "down"}, {"question_id": 262148000, "answer": "down"}),
        ("vqa", {"uid": "12", "prediction": ""}, {"question_id": 12, "answer": ""}),
        ("vizwiz", {"image_id": "VizWiz_val_1.jpg", "prediction": "x"}, {"image": "VizWiz_val_1.jpg", "answer": "x"}),
        ("gqa", {"question_id": "0123", "prediction": "yes"}, {"questionId": "0123", "prediction": "yes"}),
        ("refcoco", {"uid": "26", "prediction": [1, 2, 3.5, 4]}, {"uniq_id": "26", "box": [1.0, 2.0, 3.5, 4.0]}),
        ("refcoco", {"uid": "007", "prediction": [1, 2, 3, 4]}, {"uniq_id": "007", "box": [1.0, 2.0, 3.0, 4.0]}),
        ("refcoco", {"uid": "26", "prediction": None}, {"uniq_id": "26", "box": [0.0, 0.0, 0.0, 0.0]}),
        ("snli_ve", {"uid": "4.jpg#2r1n", "prediction": "no"}, {"uniq_id": "4.jpg#2r1n", "answer": "contradiction"}),
    ],
)
def test_each_format_has_its_own_names(kind: str, row: dict, entry: dict, tmp_path: Path) -> None:
    write_submission(kind, [row], tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == [entry]


def test_clotho_is_the_csv_of_dcase(tmp_path: Path) -> None:
    rows = [{"audio_id": "Collage of a cat, a dog.wav", "prediction": 'rain, and "thunder"'}]
    write_submission("clotho", rows, tmp_path / "result.csv")
    with (tmp_path / "result.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["file_name", "caption_predicted"],
            ["Collage of a cat, a dog.wav", 'rain, and "thunder"'],
        ]


def test_activitynet_groups_the_segments_of_a_video(tmp_path: Path) -> None:
    rows = [
        {"uid": f"v_a-{start}", "video_id": "v_a", "timestamp": [start, start + 1.5], "prediction": f"part {start}"}
        for start in (0, 2)
    ]
    write_submission("activitynet", rows, tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert document["results"] == {
        "v_a": [{"sentence": "part 0", "timestamp": [0, 1.5]}, {"sentence": "part 2", "timestamp": [2, 3.5]}]
    }


def test_equal_predictions_of_one_picture_count_once(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "prediction": "a cat"}] * 5
    assert write_submission("coco", rows, tmp_path / "result.json") == 1


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("cocoo", [{"uid": "1", "prediction": "a"}], "did you mean 'coco'"),
        ("coco", [], "no prediction"),
        ("coco", [{"prediction": "a"}], "no identity"),
        ("coco", [{"image_id": 1, "prediction": None}], "must be text"),
        ("coco", [{"image_id": 1, "prediction": "a"}, {"image_id": "1", "prediction": "b"}], "two different"),
        ("refcoco", [{"uid": "1", "prediction": [1, 2]}], "must be a box"),
        ("snli_ve", [{"uid": "1", "prediction": "perhaps"}], "unknown label"),
        ("activitynet", [{"uid": "1", "prediction": "a"}], "no timestamp"),
    ],
)
def test_wrong_rows_are_named_and_nothing_is_written(kind: str, rows: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_submission(kind, rows, tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


def test_every_kind_is_described() -> None:
    import unival.evaluation.submission

    assert all(kind in str(unival.evaluation.submission.__doc__) for kind in KINDS)


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")

    def fail() -> None:
        with replacing(path) as file:
            file.write("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
