"""A run that is stopped and continued equals one that was not, bit for bit; processes do not change the result."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import unival.evaluate
from tests import ranks, tiny
from unival.data.mixture import RowSlice, StageBatches
from unival.schema import RunConfig
from unival.training.saving import checkpoints, clean_up, newest_valid, problem_with

ROWS = 8  # of a step: divisible by 2 processes x 4 passes
KINDS = {"alone": ("none", 1), "ddp": ("ddp", 2), "fsdp": ("fsdp", 2)}


def settings_of(out: Path, kind: str, steps: int, **changes: Any) -> dict[str, Any]:
    """Return a run of one stage of text and pictures with everything that has a state: dropout, averages, moments."""
    settings = tiny.run_settings(out, (steps, 1))
    stage = settings["stages"][0]
    stage["groups"][0]["rows"] = ROWS
    changes = {"ema": {"decay": 0.9}, "checkpoint_every": 1000, "parallel": {"kind": KINDS[kind][0]}} | changes
    return settings | {"stages": [stage]} | changes


def run(settings: dict[str, Any], kind: str, stops: list[int]) -> Path:
    """Train, stopped after so many steps each time; return the run folder."""
    for stop in stops:
        messages = ranks.run(ranks.train_until, KINDS[kind][1], settings, stop)
        assert all(message is not None and "the same command continues" in message for message in messages)
    assert set(ranks.run(ranks.train_until, KINDS[kind][1], settings, None)) == {None}
    return Path(settings["out"])


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def check_resume(tmp_path: Path, kind: str, splits: list[list[int]], **changes: Any) -> None:
    steps = sum(splits[0]) + 1
    whole = run(settings_of(tmp_path / "whole", kind, steps, **changes), kind, [])
    last = f"step-{steps:07d}"
    expected = ranks.hashes(whole, last)
    tops = {name.split("/")[0] for name in expected}
    assert tops == {"model", "ema", "optimizer", *(f"random-{rank:05d}.safetensors" for rank in range(KINDS[kind][1]))}
    for number, stops in enumerate(splits):
        parts = run(settings_of(tmp_path / f"parts-{number}", kind, steps, **changes), kind, stops)
        assert ranks.hashes(parts, last) == expected
        assert losses(parts) == losses(whole)


# The default tests have one process in `test_train.py`, and below runs that move into shards and out of them.
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "accumulation"), [("alone", 2), ("ddp", 1), ("fsdp", 2)])
def test_a_continued_run_is_the_same_bit_for_bit(tmp_path: Path, kind: str, accumulation: int) -> None:
    check_resume(tmp_path, kind, [[2]], accumulation=accumulation)


@pytest.mark.slow
def test_an_interrupted_process_leaves_its_group_in_order(tmp_path: Path) -> None:
    """Freed the other way round, one stop in sixteen waited for ever: for a thread that waited for it."""
    assert ranks.run(ranks.outlived, 2, settings_of(tmp_path / "run", "ddp", 2)) == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", list(KINDS))
def test_twenty_steps_are_ten_and_ten_and_seven_six_seven(
    tmp_path: Path, kind: str, accumulation: int, workers: int
) -> None:
    check_resume(tmp_path, kind, [[10, 9], [7, 6, 6]], accumulation=accumulation, workers=workers)


def test_a_continued_stream_has_the_same_samples() -> None:
    """The ids of the next 50 samples, whatever stopped before them; and every row is read by one process once."""
    config = RunConfig.model_validate(settings_of(Path("x"), "alone", 20))

    def ids(part: RowSlice, steps: range) -> list[str]:
        batches = StageBatches(config.stages[0], tiny.processor(), config.seed, part)
        passes = range(steps.start * part.passes, steps.stop * part.passes)
        return [example.uid for number in passes for batch in batches[number] for example in batch.examples]

    for start in (0, 7, 13):
        steps = range(start, start + 4)
        whole = ids(RowSlice(), steps)
        assert len(whole) >= 50
        for world, accumulation in ((1, 4), (2, 1), (2, 4)):
            parts = [ids(RowSlice(rank, world, accumulation), steps) for rank in range(world)]
            assert sorted(uid for part in parts for uid in part) == sorted(whole)


# ------------------------------------------------------------------------------- processes do not change the result
EXACT = {"dropout": 0.0, "drop_path": 0.0}  # masks are drawn per process


def exact_settings(out: Path, kind: str, steps: int = 2, **changes: Any) -> dict[str, Any]:
    settings = settings_of(out, kind, steps, **changes)
    settings["model"] = settings["model"] | EXACT
    settings["stages"][0]["freeze_batchnorm"] = True  # its statistics are of a process's part of the batch
    return settings


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(exact_settings(tmp_path_factory.mktemp("alone") / "run", "alone"), "alone", [])


@pytest.mark.parametrize(
    ("kind", "accumulation"), [("alone", 4), ("ddp", 2), pytest.param("fsdp", 1, marks=pytest.mark.slow)]
)
def test_processes_and_accumulation_change_rounding_only(
    tmp_path: Path, alone: Path, kind: str, accumulation: int
) -> None:
    run_dir = run(exact_settings(tmp_path / "run", kind, accumulation=accumulation), kind, [])
    assert losses(run_dir) == pytest.approx(losses(alone), rel=1e-5)  # float32, two updates
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run_dir, alone))
    # Adam divides by the size of a gradient: where it is nearly zero, rounding decides about its direction.
    near = [torch.isclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3).float().mean().item() for name in ours]
    assert min(near) > 0.95


@pytest.mark.parametrize(("first", "then"), [("fsdp", "alone"), pytest.param("alone", "fsdp", marks=pytest.mark.slow)])
def test_a_run_moves_between_kinds_and_numbers_of_processes(tmp_path: Path, alone: Path, first: str, then: str) -> None:
    begun = exact_settings(tmp_path / "run", first)
    assert all(ranks.run(ranks.train_until, KINDS[first][1], begun, 1))
    run_dir = run(exact_settings(tmp_path / "run", then), then, [])
    assert losses(run_dir) == pytest.approx(losses(alone), rel=1e-5)


def train_until_batch(settings: dict[str, Any], stop: int | None) -> tuple[str | None, int]:
    """Train; the last process gets SIGTERM in the `stop`-th batch of validations. Return what is said, and batches."""
    predict_rows, batches = unival.evaluate.predict_rows, 0
    is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

    def counted(*args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == stop and is_last:
            signal.raise_signal(signal.SIGTERM)
        return predict_rows(*args)

    unival.evaluate.predict_rows = counted
    try:
        return ranks.train_until(settings, None), batches
    finally:
        unival.evaluate.predict_rows = predict_rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_signal_to_one_process_halts_a_validation_in_all(tmp_path: Path, kind: str) -> None:
    source = {"world": "validation", "limit": 5 * KINDS[kind][1]}
    evaluation = {"name": "captions", "task": "caption", "source": source, "batch_size": 1}
    whole, parts = (settings_of(tmp_path / name, kind, 3) for name in ("whole", "parts"))
    for settings in (whole, parts):
        settings["stages"][0]["validation"] = {"every": 2, "evaluations": [evaluation], "monitor": "captions/cider_d"}
    size = KINDS[kind][1]
    assert ranks.run(train_until_batch, size, whole, None) == [(None, 10)] * size
    stopped = ranks.run(train_until_batch, size, parts, 2)
    assert [message for message, _ in stopped] == ["stopped at step 2; the same command continues"] * size
    assert stopped[-1][1] == 2
    done = [line for path in (tmp_path / "parts").glob(".validation-2/*/*") for line in path.read_text().splitlines()]
    assert len(done) == sum(batches for _, batches in stopped)
    again = ranks.run(train_until_batch, size, parts, None)
    assert sum(batches for _, batches in again) == 10 * size - len(done)
    last = "step-0000003"
    assert ranks.hashes(tmp_path / "parts", last) == ranks.hashes(tmp_path / "whole", last)


# --------------------------------------------------------------------------------------------------- killed writing
def save_for_ever(folder: str) -> None:
    """Save checkpoint after checkpoint; after each, its step is added to `acknowledged`."""
    from tests.unit import test_saving

    for step in range(1, 10**6):
        test_saving.save(Path(folder), step)
        with Path(folder, "acknowledged").open("a") as file:
            file.write(f"{step}\n")


def check_kills(tmp_path: Path, number: int) -> None:
    draws = random.Random(0)
    for kill in range(number):
        run_dir = tmp_path / str(kill)
        run_dir.mkdir()
        process = ranks.CONTEXT.Process(target=save_for_ever, args=(str(run_dir),))
        process.start()
        while not (run_dir / "acknowledged").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(draws.uniform(0.0, 1.0))
        process.kill()
        process.join()
        acknowledged = int((run_dir / "acknowledged").read_text().split()[-1])
        assert all(problem_with(folder) is None for folder in checkpoints(run_dir))
        clean_up(run_dir)
        newest, skipped = newest_valid(run_dir)
        assert newest is not None
        assert skipped == []
        assert int(newest.name.removeprefix("step-")) >= acknowledged
        assert not list(run_dir.glob(".*"))


def test_a_kill_while_saving_loses_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, 1)


@pytest.mark.slow
def test_fifty_kills_while_saving_lose_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, 50)


def newest_step(run_dir: Path) -> int:
    return max((int(folder.name.removeprefix("step-")) for folder in checkpoints(run_dir)), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path, kind: str) -> None:
    draws, steps, kills = random.Random(0), 24, 0
    whole = run(settings_of(tmp_path / "whole", kind, steps), kind, [])
    settings = settings_of(tmp_path / "parts", kind, steps, checkpoint_every=1)
    parts = Path(settings["out"])
    while newest_step(parts) < steps - 1:
        processes, _ = ranks.start(ranks.train_until, KINDS[kind][1], settings, None)
        before = newest_step(parts)
        while newest_step(parts) == before and all(process.is_alive() for process in processes):
            time.sleep(0.01)
        time.sleep(draws.uniform(0.0, 1.0))
        kills += all(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    run(settings, kind, [])
    assert kills >= 5
    assert ranks.hashes(parts, f"step-{steps:07d}") == ranks.hashes(whole, f"step-{steps:07d}")
    assert losses(parts) == losses(whole)
