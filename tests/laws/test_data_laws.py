"""Laws of reading data: buckets, shares of processes, same rows however they are prepared."""

import base64
import copy
import io
import json
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from unival.batch import Batch
from unival.data.buckets import BucketOrder, bucket_of
from unival.data.mixture import RowSlice, StageBatches, iterate, steps_of
from unival.errors import UserError
from unival.schema import StageConfig


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_processes_and_passes_share_every_row_once(world: int, passes: int, size: int, steps: int) -> None:
    num_rows = world * passes * size
    group = stage(Path("rows.tsv"), steps, num_rows).groups[0]
    slices = [RowSlice(rank, world, passes) for rank in range(world)]
    for step in range(steps):
        numbers = range(step * passes, (step + 1) * passes)
        rows = [row for part in slices for number in numbers for row in part.rows(group, number)]
        assert sorted(rows) == list(range(step * num_rows, (step + 1) * num_rows))


@given(st.lists(st.sampled_from([64, 96, 128]), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_of_buckets_holds_every_row_once(buckets: list[int], block: int, seed: int) -> None:
    order, again = (BucketOrder(buckets, block, seed) for _ in range(2))
    num_rows = len(buckets)
    for epoch in range(4):
        rows = [order[epoch * num_rows + offset] for offset in range(num_rows)]
        assert sorted(rows) == list(range(num_rows))
        assert rows == [again[epoch * num_rows + offset] for offset in range(num_rows)]


@given(st.lists(st.sampled_from([64, 96, 128]), min_size=30, max_size=90), st.integers(2, 6))
def test_most_blocks_hold_one_bucket(buckets: list[int], block: int) -> None:
    order = BucketOrder(buckets, block, 0)
    num_blocks = 3 * len(buckets) // block
    found = [{buckets[order[number * block + offset]] for offset in range(block)} for number in range(num_blocks)]
    assert sum(len(kinds) > 1 for kinds in found) <= 4 * 4  # at most three rests and a border in each epoch


def test_buckets_of_pictures_and_clips() -> None:
    sides = [bucket_of({"width": w, "height": h}, "image", [64, 96, 128]) for w, h in ((50, 70), (96, 97), (500, 400))]
    assert sides == [64, 96, 128]
    assert [bucket_of({"frames": n}, "video", [4, 8, 16]) for n in (2, 4, 15, 99)] == [4, 4, 8, 16]
    with pytest.raises(UserError, match="no height"):
        bucket_of({"width": 4}, "image", [64])


def table(folder: Path, num_rows: int = 24, bad: tuple[int, ...] = ()) -> Path:
    rows = []
    for number in range(num_rows):
        stream = io.BytesIO()
        side = 40 + 40 * (number % 3)
        Image.fromarray(np.full((side, side, 3), number * 10, np.uint8)).save(stream, "PNG")
        content = stream.getvalue()[:40] if number in bad else stream.getvalue()
        rows.append(f"u{number}\tcaption {number}\t{base64.b64encode(content).decode()}\t{side}\t{side}")
    (folder / "rows.tsv").write_text("\n".join(rows))
    return folder / "rows.tsv"


def stage(path: Path, steps: int, rows: int, **group: Any) -> StageConfig:
    source = {"tsv": str(path), "columns": ["uid", "captions", "image", "width", "height"]}
    groups = [{"rows": rows, "tasks": [{"task": "caption", "source": source}], **group}]
    return StageConfig.model_validate({"name": "s", "steps": steps, "groups": groups})


@pytest.mark.parametrize(("world", "passes"), [(1, 2), (2, 1), (2, 2)])
def test_a_step_of_buckets_has_the_same_rows_for_any_processes_and_passes(
    world: int, passes: int, tmp_path: Path
) -> None:
    config, processor = stage(table(tmp_path, 21), steps=4, rows=4, buckets=[40, 80, 120]), tiny.processor()
    whole = uids(list(iterate(config, processor, 1, 0, 0)))
    parts = [StageBatches(config, processor, 1, RowSlice(rank, world, passes)) for rank in range(world)]
    for step in range(4):
        numbers = range(step * passes, (step + 1) * passes)
        shared = chain.from_iterable(uids([part[number] for part in parts for number in numbers]))
        assert sorted(shared) == sorted(whole[step])


@given(st.integers(1, 300), st.integers(1, 100), st.integers(1, 20))
def test_steps_are_the_smallest_number_that_ends_the_epochs(hundredths: int, rows: int, size: int) -> None:
    exact = -(-hundredths * rows // (100 * size))
    assert steps_of(hundredths / 100, rows, size) == exact


def uids(batches: list[list[Batch]]) -> list[list[str]]:
    return [[example.uid for example in batch.examples] for (batch,) in batches]


def test_rows_are_the_same_for_any_number_of_workers_and_after_resuming(tmp_path: Path) -> None:
    config, processor = stage(table(tmp_path), steps=8, rows=4), tiny.processor()
    whole = list(iterate(config, processor, 1, 0, 0))
    assert sorted(chain.from_iterable(uids(whole[:6]))) == sorted(f"u{number}" for number in range(24))
    for workers, start in ((1, 0), (2, 0), (4, 0), (2, 5)):
        found = list(iterate(config, processor, 1, start, workers))
        assert uids(found) == uids(whole)[start:]
        for (a,), (b,) in zip(found, whole[start:], strict=True):
            assert (a.inputs["pixel_values"] == b.inputs["pixel_values"]).all()


def test_processes_see_every_row_of_a_table_once(tmp_path: Path) -> None:
    config, processor = stage(table(tmp_path), steps=3, rows=8), tiny.processor()
    seen = []
    for rank in range(2):
        batches = StageBatches(config, processor, 1, RowSlice(rank, 2, 2))
        seen += chain.from_iterable(uids([batches[number] for number in range(len(batches))]))
    assert sorted(seen) == sorted(f"u{number}" for number in range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_that_cannot_be_decoded_are_named_and_replaced(
    workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, bad=(3, 17))
    found = uids(list(iterate(stage(path, steps=6, rows=4), tiny.processor(), 1, 0, workers)))
    good = uids(list(iterate(stage(table(tmp_path), steps=6, rows=4), tiny.processor(), 1, 0, 0)))
    changed = {b: a for one, other in zip(found, good, strict=True) for a, b in zip(one, other, strict=True) if a != b}
    assert sorted(changed) == ["u17", "u3"]
    assert not {"u3", "u17"} & set(changed.values())
    messages = sorted(line for line in capsys.readouterr().err.split("\n") if line)
    assert len(messages) == 2
    assert all(f"{path}:{number + 1}" in message for number, message in zip((17, 3), messages, strict=True))


def test_a_malformed_row_of_a_table_is_named_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"u{i}\twhat?\ta cat\t1,2,3{',4' * (i != 5)}\n" for i in range(8)))
    source = {"tsv": str(path), "columns": ["uid", "question", "answers", "box"]}
    entry = {"task": "vqa", "task_args": {"modality": "text"}, "source": source}
    config = StageConfig.model_validate({"name": "s", "steps": 2, "groups": [{"rows": 4, "tasks": [entry]}]})
    found = uids(list(iterate(config, tiny.processor(), 1, 0, 0)))
    assert sorted({uid for batch in found for uid in batch}) == sorted(f"u{i}" for i in range(8) if i != 5)
    assert "left out: box must be four numbers" in capsys.readouterr().err


def test_too_many_bad_rows_end_the_run(tmp_path: Path) -> None:
    path = table(tmp_path, bad=tuple(range(0, 24, 2)))
    with pytest.raises(UserError, match=r"rows cannot be read, more than 1.0%.*rows\.tsv:"):
        list(iterate(stage(path, steps=9, rows=4), tiny.processor(), 1, 0, 1))


def test_augmented_rows_are_a_function_of_their_place(tmp_path: Path) -> None:
    config, processor = stage(table(tmp_path), steps=7, rows=4), tiny.processor()
    entry = config.groups[0].tasks[0].model_copy(update={"augment": "pretrain"})
    config = config.model_copy(update={"groups": [config.groups[0].model_copy(update={"tasks": [entry]})]})
    one, two = (list(iterate(config, processor, 1, 0, workers)) for workers in (0, 2))
    for (a,), (b,) in zip(one, two, strict=True):
        assert (a.inputs["pixel_values"] == b.inputs["pixel_values"]).all()
        assert len({example.media_id for example in a.examples}) == 4


def test_batches_take_the_size_of_their_bucket(tmp_path: Path) -> None:
    config = stage(table(tmp_path), steps=12, rows=2, buckets=[32, 64, 96])
    batches = list(iterate(config, tiny.processor(), 1, 0, 0))
    assert sorted(chain.from_iterable(uids(batches))) == sorted(f"u{number}" for number in range(24))
    sides = [batch.inputs["pixel_values"].shape[-1] for (batch,) in batches]
    assert sorted(sides) == [64] * 4 + [96] * 8  # pictures of 40, 80 and 120 pixels


def test_a_malformed_row_ends_the_run_at_once(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "captions": "no list"}))
    entry = {"task": "caption", "source": {"manifest": str(tmp_path / "rows.jsonl")}}
    config = StageConfig.model_validate({"name": "s", "steps": 1, "groups": [{"rows": 1, "tasks": [entry]}]})
    with pytest.raises(UserError, match=r"captions must be a list.*rows\.jsonl:1"):
        list(iterate(config, tiny.processor(), 1, 0, 1))


def manifest_stage(path: Path, lines: list[dict[str, object]], **changes: object) -> StageConfig:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    entry = {"task": "vqa", "task_args": {"modality": "text"}, "source": {"manifest": str(path)}}
    return StageConfig.model_validate({"name": "s", "steps": 2, "groups": [{"rows": 4, "tasks": [entry]}], **changes})


def test_rows_without_a_label_are_named_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    lines: list[dict[str, object]] = [{"uid": f"u{i}", "question": "what?", "answers": ["a cat"]} for i in range(8)]
    lines[5] = {"uid": "u5", "question": "what?", "answer": "a dog"}  # not the name of the column
    found = uids(list(iterate(manifest_stage(path, lines), tiny.processor(), 1, 0, 0)))
    assert sorted({uid for batch in found for uid in batch}) == sorted(f"u{i}" for i in range(8) if i != 5)
    assert f"no label for task 'vqa' in the columns uid, question, answer [{path}:6]" in capsys.readouterr().err
    unlabelled = manifest_stage(path, [{"uid": str(i), "question": "what?"} for i in range(30)])
    with pytest.raises(UserError, match=r"20 rows in succession cannot be used: no label for task 'vqa'.*rows\.jsonl:"):
        list(iterate(unlabelled, tiny.processor(), 1, 0, 0))
    drawn = {"objective": {"name": "grpo", "args": {"rewards": {"brevity": 1.0}}}}
    rewarded = manifest_stage(path, [{"uid": str(i), "question": "what?"} for i in range(30)], **drawn)
    assert len(list(iterate(rewarded, tiny.processor(), 1, 0, 0))) == 2  # answers are drawn, none is learned


def test_a_text_without_positions_is_a_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    lines: list[dict[str, object]] = [{"uid": f"u{i}", "question": "what?", "answers": ["a cat"]} for i in range(8)]
    lines[2]["question"] = "猫" * 60  # without a space: one word
    lines[6]["answers"] = ["猫" * 60]
    processor = copy.copy(tiny.processor())
    processor.max_tokens = 40
    found = uids(list(iterate(manifest_stage(path, lines), processor, 1, 0, 0)))
    assert sorted({uid for batch in found for uid in batch}) == sorted(f"u{i}" for i in range(8) if i not in (2, 6))
    messages = capsys.readouterr().err
    assert f"tokens, the model reads 40 [{path}:3]" in messages
    assert f"tokens, the model reads 40 [{path}:7]" in messages


def test_an_error_about_a_record_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    config = manifest_stage(path, [{"uid": "7", "answers": ["a cat"]}])
    with pytest.raises(UserError, match=r"the record has no column 'question' \[.*rows\.jsonl:1\]"):
        list(iterate(config, tiny.processor(), 1, 0, 0))
