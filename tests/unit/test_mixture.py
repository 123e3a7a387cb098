"""The stream: the batch of a step is a pure function of the configuration and the step number."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny
from unival.batch import Batch
from unival.data.mixture import StageBatches, Stream, iterate
from unival.errors import UserError
from unival.schema import StageConfig, TaskEntry


def stage(*groups: dict[str, Any], steps: int = 6) -> StageConfig:
    return StageConfig.model_validate({"name": "a", "steps": steps, "groups": groups})


def entry(task: str, limit: int | None = 8, **changes: Any) -> dict[str, Any]:
    return {"task": task, "source": {"world": "train", "limit": limit}} | changes


WORLD = stage(
    {"rows": 2, "tasks": [entry("caption"), entry("vqa", share=2), entry("entailment", every=3)]},
    {"rows": 1, "tasks": [entry("caption", task_args={"modality": "audio"})]},
)


def same(one: Batch, two: Batch) -> bool:
    keys_agree = set(one.inputs) == set(two.inputs) and one.task_names == two.task_names
    return (
        keys_agree
        and all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)
        and torch.equal(one.target, two.target)
        and [e.uid for e in one.examples] == [e.uid for e in two.examples]
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_batches_depend_on_the_step_only(workers: int, start: int) -> None:
    expected = StageBatches(WORLD, tiny.processor(), seed=3)
    found = list(iterate(WORLD, tiny.processor(), 3, start, workers))
    assert len(found) == WORLD.steps - start
    for step, batches in enumerate(found, start):
        assert len(batches) == 2
        assert all(same(*pair) for pair in zip(batches, expected[step], strict=True))


def test_another_seed_is_another_order() -> None:
    one, two = (StageBatches(WORLD, tiny.processor(), seed)[0][0] for seed in (1, 2))
    assert not same(one, two)


def manifest(tmp_path: Path, num_rows: int) -> dict[str, Any]:
    """Write a manifest with one picture per row; return a source."""
    rows = []
    for i in range(num_rows):
        Image.fromarray(tiny.picture(i)).save(tmp_path / f"{i}.png")
        rows.append(json.dumps({"uid": str(i), "image": f"{i}.png", "caption": f"a cat {i}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return {"manifest": str(tmp_path / "rows.jsonl")}


@pytest.mark.parametrize("rows", [1, 3, 7, 10])
def test_every_epoch_of_a_manifest_covers_every_row_once(tmp_path: Path, rows: int) -> None:
    num_rows = 7
    task = {"task": "caption", "source": manifest(tmp_path, num_rows)}
    config = stage({"rows": rows, "tasks": [task]}, steps=2 * num_rows)
    batches = StageBatches(config, tiny.processor(), seed=1)
    uids = [e.uid for step in range(len(batches)) for e in batches[step][0].examples]
    epochs = [uids[start : start + num_rows] for start in range(0, len(uids) - num_rows + 1, num_rows)]
    assert len(epochs) >= 2
    assert all(sorted(epoch) == sorted(map(str, range(num_rows))) for epoch in epochs)
    assert epochs[0] != epochs[1]  # reshuffled


def test_share_and_every_set_the_mixture() -> None:
    batches = StageBatches(WORLD, tiny.processor(), seed=1)
    counts = [Counter(batches[step][0].task_names) for step in range(6)]
    assert all(count["caption"] == 2 and count["vqa"] == 4 for count in counts)
    # Rows 0, 3, 6, 9 of the group, two rows a step.
    assert [count["entailment"] for count in counts] == [1, 1, 0, 1, 1, 0]
    assert len(batches) == 6


def test_tasks_of_an_aligned_group_look_at_the_same_media() -> None:
    batch = StageBatches(WORLD, tiny.processor(), seed=1)[0][0]
    media = {name: set() for name in batch.task_names}
    for name, example in zip(batch.task_names, batch.examples, strict=True):
        media[name].add(example.media_id)
    assert media["caption"] == media["vqa"] >= media["entailment"]
    assert len(batch.inputs["pixel_values"]) == 2
    index = batch.inputs["media_index"]
    for row, example in enumerate(batch.examples):
        pixels = tiny.processor().image(example.media)
        assert torch.equal(batch.inputs["pixel_values"][index[row]], pixels)


def test_draws_about_one_medium_are_different_questions_and_epochs_go_on_with_them() -> None:
    stream = Stream(TaskEntry.model_validate(entry("vqa", limit=3)), seed=1)
    uids = [stream.example(0, draw).uid for draw in range(4)]
    assert len(set(uids)) == 4
    again = [
        position for position in range(3, 6) if stream.example(position, 0).media_id == stream.example(0, 0).media_id
    ]
    assert [stream.example(position, 0).uid for position in again] == [uids[1]]


def test_a_group_that_is_not_aligned_has_its_own_order_per_task(tmp_path: Path) -> None:
    source = manifest(tmp_path, 7)
    tasks = [{"task": "caption", "source": source}, {"task": "caption", "source": source | {"limit": 5}}]
    with pytest.raises(UserError, match=r"same media, got caption 7, caption 5.*stage a.*aligned: false"):
        StageBatches(stage({"rows": 2, "tasks": tasks}), tiny.processor(), seed=1)
    batches = StageBatches(stage({"rows": 2, "aligned": False, "tasks": tasks}), tiny.processor(), seed=1)
    first = [[e.uid for e in batches[step][0].examples] for step in range(6)]
    assert all(len(uids) == 4 for uids in first)
    assert any(uids[0] != uids[1] for uids in first)


def test_a_group_may_have_its_own_picture_size() -> None:
    batches = StageBatches(stage({"rows": 2, "image_px": 40, "tasks": [entry("caption")]}), tiny.processor(), seed=1)
    assert batches[0][0].inputs["pixel_values"].shape == (2, 3, 40, 40)


def test_an_endless_world_is_read_in_order() -> None:
    stream = Stream(TaskEntry.model_validate(entry("caption", limit=None)), seed=1)
    numbers = [int(stream.example(position, 0).media_id.split("/")[-1]) for position in range(5)]
    assert numbers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"rows": 2, "tasks": [entry("caption", every=3)]}, r"some steps.*no example.*every"),
        (
            {"rows": 1, "tasks": [entry("caption"), entry("caption", task_args={"modality": "audio"})]},
            "one modality",
        ),
    ],
)
def test_a_group_that_makes_no_batch_is_refused_before_training(group: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StageBatches(stage(group), tiny.processor(), seed=1)
