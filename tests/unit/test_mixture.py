"""The stream: the batch of a step is a pure function of the configuration and the step number."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import tiny
from unival.batch import Batch
from unival.data.mixture import Pool, RowSlice, StageBatches, Stream, iterate, shuffled, with_steps
from unival.errors import UserError
from unival.schema import RunConfig, StageConfig, TaskEntry


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
        # Training resizes with another kernel: one level of 255 at most.
        torch.testing.assert_close(batch.inputs["pixel_values"][index[row]], pixels, atol=2.001 / 255, rtol=0)


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


def test_another_seed_reads_an_endless_world_from_elsewhere() -> None:
    streams = [Stream(TaskEntry.model_validate(entry("caption", limit=None)), seed) for seed in range(40)]
    first, second = (stream.example(0, 0).media_id for stream in streams[1:3])
    assert first != second
    starts = sorted(stream.start for stream in streams)
    assert min(after - before for before, after in pairwise(starts)) > 10**6  # more than a run reads
    last = next(stream for stream in streams if stream.start == starts[-1])
    assert (
        last.example(last.num_media - last.start, 0).media_id == streams[1].example(0, 0).media_id
    )  # seed 1 begins at 0


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


@pytest.mark.parametrize(("world", "passes"), [(1, 2), (2, 1), (2, 3), (6, 1)])
def test_processes_and_passes_cut_the_rows_of_a_step_between_them(world: int, passes: int) -> None:
    config = stage({"rows": 6, "tasks": [entry("caption"), entry("vqa", share=2)]}, steps=3)
    whole = StageBatches(config, tiny.processor(), seed=1)
    parts = [StageBatches(config, tiny.processor(), 1, RowSlice(rank, world, passes)) for rank in range(world)]
    assert all(len(part) == 3 * passes for part in parts)
    for step in range(3):
        wanted = [e.uid for e in whole[step][0].examples]
        turns = range(step * passes, (step + 1) * passes)
        assert [e.uid for turn in turns for part in parts for e in part[turn][0].examples] == wanted


def test_a_resumed_run_begins_at_the_first_pass_of_its_step() -> None:
    config = stage({"rows": 4, "tasks": [entry("caption")]}, steps=3)
    rows = RowSlice(1, 2, 2)
    expected = StageBatches(config, tiny.processor(), 3, rows)
    found = list(iterate(config, tiny.processor(), 3, 1, 0, rows))
    assert len(found) == 4
    assert all(same(one[0], expected[2 + number][0]) for number, one in enumerate(found))


def test_rows_that_cannot_be_cut_are_refused() -> None:
    config = stage({"rows": 6, "tasks": [entry("caption")]})
    with pytest.raises(UserError, match=r"6 rows a step cannot be cut into 2 processes x 2 passes.*divides 6"):
        StageBatches(config, tiny.processor(), 1, RowSlice(0, 2, 2))


def test_tasks_about_one_source_share_its_rows_and_others_have_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = manifest(tmp_path / "a", 8), manifest(tmp_path / "b", 5)
    tasks = [
        {"task": "caption", "source": one},
        {"task": "matching", "source": one, "task_args": {"captions_file": str(tmp_path / "a" / "rows.jsonl")}},
        {"task": "caption", "source": two, "every": 2, "offset": 1},
    ]
    batches = StageBatches(stage({"rows": 4, "aligned": False, "tasks": tasks}), tiny.processor(), seed=1)
    media = {name: [] for name in ("caption", "matching")}
    for step in range(2):
        batch = batches[step][0]
        assert batch.task_names.count("caption") == 6
        assert len(batch.inputs["pixel_values"]) == 6  # four pictures for two tasks each, and two of the third
        for name, example in zip(batch.task_names, batch.examples, strict=True):
            if "/a/" in example.media_id.replace("\\", "/"):
                media[name].append(example.media_id)
    assert media["caption"] == media["matching"]
    seen = [e.media_id for step in range(5) for e in batches[step][0].examples if "/b/" in e.media_id]
    assert all(len(set(seen[start : start + 5])) == 5 for start in (0, 5))  # taking turns leaves none of its rows out


def test_proportional_mixing_shows_every_row_of_all_sources_once_an_epoch(tmp_path: Path) -> None:
    sources = []
    for name, rows in (("a", 3), ("b", 9)):
        (tmp_path / name).mkdir()
        sources.append(manifest(tmp_path / name, rows))
    tasks = [{"task": "caption", "source": source} for source in sources]
    config = stage({"rows": 4, "mixing": "proportional", "tasks": tasks}, steps=6)
    batches = StageBatches(config, tiny.processor(), seed=1)
    shown = [e.media_id for step in range(6) for e in batches[step][0].examples]
    epochs = shown[:12], shown[12:]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert epochs[0] != epochs[1]
    orders = {tuple("/a/" in media.replace("\\", "/") for media in epoch) for epoch in epochs}
    assert all(sum(order) == 3 for order in orders)


def test_a_pool_counts_a_source_for_as_many_rows_as_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tasks = [
        {"task": "caption", "source": manifest(tmp_path / "a", 6), "size": 2},
        entry("caption", limit=3) | {"size": 6},
    ]
    streams = [Stream(TaskEntry.model_validate(task), seed=1) for task in tasks]
    pool = Pool(streams, seed=1)
    drawn = [pool.example(position) for position in range(24)]
    for epoch in range(3):
        assert sum(stream is streams[0] for stream, _ in drawn[8 * epoch : 8 * epoch + 8]) == 2
    assert len({example.uid for stream, example in drawn if stream is streams[0]}) == 6  # others in every epoch


@given(length=st.integers(1, 2000), seed=st.integers(0, 2**40), epoch=st.integers(0, 100))
@settings(max_examples=30)
def test_a_shuffle_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(index, length, seed, epoch) for index in range(length)) == list(range(length))


def test_shuffles_differ_and_are_even_and_any_length_will_do() -> None:
    first, second = ([shuffled(i, 1000, 1, epoch) for i in range(1000)] for epoch in (0, 1))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    # Uniform placements have a mean distance of a third of the length, and no order in the halves.
    assert sum(abs(i - place) for i, place in enumerate(first)) / 1000 == pytest.approx(333, abs=40)
    assert sum(place < 500 for place in first[:500]) == pytest.approx(250, abs=50)
    huge = 10**12 + 7
    assert len({shuffled(i, huge, 1, 0) for i in range(100)}) == 100
    assert all(0 <= shuffled(i, huge, 1, 0) < huge for i in range(100))


def test_epochs_become_steps_once_the_rows_are_counted(tmp_path: Path) -> None:
    source = manifest(tmp_path, 7)
    alone = {"rows": 2, "tasks": [{"task": "caption", "source": source}]}
    turns = {
        "rows": 2,
        "aligned": False,
        "tasks": [{"task": "caption", "source": source, "every": 3}, entry("caption")],
    }
    pool = {"rows": 2, "mixing": "proportional", "tasks": [{"task": "caption", "source": source}, entry("caption")]}
    stages = [{"name": str(i), "epochs": 2, "groups": [g]} for i, g in enumerate((alone, turns, pool))]
    last = {"name": "d", "steps": 5, "groups": [alone]}
    run = tiny.run_settings(tmp_path / "run") | {"stages": [*stages, last]}
    found = with_steps(RunConfig.model_validate(run)).stages
    assert [stage.steps for stage in found] == [7, 21, 39, 5]  # 14 / 2, 14 * 3 / 2, 2 * (7 + 32) / 2
    assert all(stage.epochs is None for stage in found)


def test_validations_between_epochs_become_steps_beside_those_counted_in_steps(tmp_path: Path) -> None:
    group = {"rows": 2, "tasks": [{"task": "caption", "source": manifest(tmp_path, 7)}]}
    evaluations = [{"name": "a", "task": "caption", "source": {"world": "test"}}]
    lengths = [{"epochs": 3}, {"steps": 9}]
    intervals = [{"every": 10, "every_epochs": 1}, {"every_epochs": 0.5}]
    stages = [
        {"name": str(i), "groups": [group], "validation": given | {"evaluations": evaluations}} | length
        for i, (length, given) in enumerate(zip(lengths, intervals, strict=True))
    ]
    run = tiny.run_settings(tmp_path / "run") | {"stages": stages}
    one, two = (stage.validation for stage in with_steps(RunConfig.model_validate(run)).stages)
    assert one is not None
    assert two is not None
    assert [step for step in range(1, 12) if one.is_due(step)] == [4, 8, 10]  # 7 / 2, and 10
    assert [step for step in range(1, 10) if two.is_due(step)] == [2, 4, 6, 8]


def test_clips_of_a_group_may_have_their_own_size() -> None:
    video = entry("caption", task_args={"modality": "video"})
    batches = StageBatches(stage({"rows": 1, "video_px": 16, "num_frames": 2, "tasks": [video]}), tiny.processor(), 1)
    assert batches[0][0].inputs["pixel_values_videos"].shape == (1, 3, 2, 16, 16)
    assert tiny.processor().num_frames == 4  # that of others is as it was


def test_tasks_that_draw_do_so_anew_in_every_epoch() -> None:
    stream = Stream(TaskEntry.model_validate(entry("caption", limit=3)), seed=1)
    assert [stream.example(position, 0).record["epoch"] for position in (0, 2, 3, 7)] == [0, 0, 1, 2]
