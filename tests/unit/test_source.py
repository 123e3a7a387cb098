"""Rows of manifests and of the embedded world."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unival.data.manifest import ManifestRows
from unival.data.source import open_source
from unival.data.world_rows import CONTENTS
from unival.errors import UserError
from unival.schema import SourceConfig
from unival.tasks.base import get_task, task_names


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_media_paths_are_relative_to_the_manifest_and_rows_have_an_id(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"uid": 7, "image": "images/a.png", "caption": "a"}, "", {"video": "b.mp4"})
    rows = ManifestRows(path)
    assert len(rows) == 2
    assert rows[0] == {"uid": "7", "image": str(tmp_path / "images/a.png"), "caption": "a"}
    assert rows[1] == {"uid": "rows.jsonl:3", "video": str(tmp_path / "b.mp4")}
    assert len(ManifestRows(path, limit=1)) == 1


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    text = json.dumps({"uid": "1", "caption": "a\u2028b\u0085c"}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes((text + "\r\n" + text + "\n").encode())
    assert [row["caption"] for row in ManifestRows(tmp_path / "rows.jsonl")] == ["a\u2028b\u0085c"] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"uid": "1"}', '{"uid": 2,'], r"not a JSON line.*rows\.jsonl:2:\d+"),
        (["[1, 2]"], r"must be a JSON object.*rows\.jsonl:1"),
        ([{"image": None}], r"a medium must be a path or a range of a file, got null.*rows\.jsonl:1"),
        ([], "has no rows"),
        (["", "  "], "has no rows"),
    ],
)
def test_a_malformed_manifest_names_the_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ManifestRows(write(tmp_path / "rows.jsonl", *rows))


def test_a_missing_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest"):
        ManifestRows(tmp_path / "rows.jsonl")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        ManifestRows(tmp_path / "a.png")


def test_rows_share_a_medium_only_if_it_is_the_same_file(tmp_path: Path) -> None:
    """Equal names in two folders, or another column with equal files, do not make two pictures one."""
    ids = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        row = {"image": "1.png", "audio": "silence.wav", "captions": ["a"]}
        rows = ManifestRows(write(tmp_path / folder / "rows.jsonl", row, row | {"image": "2.png"}, row))
        ids += [get_task("caption").example(row).media_id for row in rows]
    assert ids[0] == ids[2]
    assert len(set(ids)) == 4


@pytest.mark.parametrize("pair", sorted(CONTENTS), ids="-".join)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_world_rows_are_pure_functions_of_their_number(pair: tuple[str, str], split: str) -> None:
    modality, content = pair
    config = SourceConfig.model_validate({"world": split, "limit": 3, "content": content})
    first, second = (open_source(config, "any", modality) for _ in range(2))  # type: ignore[arg-type]
    assert len(first) == 3 * first.variants
    uids = set()
    for index in range(len(first)):
        one, two = first[index], second[index]
        uids.add(one["uid"])
        medium = one[modality]
        assert {k: v for k, v in one.items() if k != modality} == {k: v for k, v in two.items() if k != modality}
        assert np.array_equal(medium, two[modality]) if isinstance(medium, np.ndarray) else medium == two[modality]
        assert one["media_id"] == first[index // first.variants * first.variants]["media_id"]
    assert len(uids) == len(first)
    with pytest.raises(IndexError):
        first[len(first)]


@pytest.mark.parametrize("name", sorted({content for _, content in CONTENTS} & set(task_names())))
def test_world_rows_suit_the_task_of_their_name(name: str) -> None:
    modalities = [modality for modality in ("image", "video", "audio") if (modality, name) in CONTENTS]
    for modality in modalities:
        task = get_task(name, {"modality": modality})
        source = open_source(SourceConfig(world="test", limit=4), name, task.modality)
        examples = [task.example(source[i]) for i in range(4)]
        assert all(example.target and example.prompt for example in examples)
        predictions = [task.parse(example.target, example.record) for example in examples]
        scores = task.score(predictions, [source[i] for i in range(4)])
        if name != "caption":  # CIDEr-D of a caption with itself depends on the corpus
            assert scores[task.monitor].min() >= 0.5  # a box of one bin's precision
        else:
            assert scores["exact"].tolist() == [1.0] * 4


def test_training_rows_offer_several_questions_about_a_medium_and_test_rows_one() -> None:
    train = open_source(SourceConfig(world="train", limit=2), "vqa", "image")
    test = open_source(SourceConfig(world="test", limit=8), "vqa", "image")
    assert (train.variants, test.variants) == (4, 1)
    assert train[0]["media_id"] == train[3]["media_id"] != train[4]["media_id"]
    assert len({train[i]["question"] for i in range(4)}) > 1
    assert len({test[i]["media_id"] for i in range(8)}) == 8
    assert len({test[i]["question_type"] for i in range(8)}) > 1


def test_unknown_contents_and_styles_are_refused() -> None:
    with pytest.raises(UserError, match="no audio rows for 'grounding'"):
        open_source(SourceConfig(world="train"), "grounding", "audio")
    with pytest.raises(UserError, match="did you mean 'caption'"):
        open_source(SourceConfig(world="train", content="captions"), "caption", "image")
    with pytest.raises(UserError, match="notto"):
        open_source(SourceConfig(world="train", styles=["notto"]), "caption", "image")


def test_unknown_options_of_the_world_are_refused() -> None:
    config = SourceConfig(world="train", options={"max_object": 2})
    with pytest.raises(UserError, match=r"max_object.*max_objects"):
        open_source(config, "caption", "image")


def test_options_and_seeds_make_other_scenes() -> None:
    captions = [
        open_source(SourceConfig(world="train", limit=1, options=options), "caption", "image")[0]["caption"]
        for options in ({}, {"seed": 1}, {"seed": 2})
    ]
    assert len(set(captions)) > 1
