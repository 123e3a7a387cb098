"""Training checkpoints: what is written is what is read, damage is found, a failed write leaves the older ones."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from unival import checkpoint
from unival.checkpoint import digest, load_model
from unival.errors import UserError
from unival.model.modeling import UnivalForConditionalGeneration
from unival.schema import EmaConfig, OptimConfig
from unival.training import saving
from unival.training.ema import Ema, untied
from unival.training.optim import build_optimizer
from unival.training.random_state import load_random, save_random, seed_process
from unival.training.saving import (
    TrainState,
    checkpoints,
    clean_up,
    load_moments,
    newest_valid,
    problem_with,
    prune,
    read_state,
    save_training,
)

CPU = torch.device("cpu")
NO_ENCODERS = {"image_encoder": None, "video_encoder": None, "audio_encoder": None}


def trained_once() -> tuple[UnivalForConditionalGeneration, torch.optim.AdamW]:
    model = tiny.build_model(**NO_ENCODERS)
    optimizer = build_optimizer(model, OptimConfig())
    labels = torch.tensor([[5, 6, 2]])
    model(input_ids=labels, labels=labels).loss.backward()
    optimizer.step()
    return model, optimizer


def save(run_dir: Path, step: int, ema: Ema | None = None) -> Path:
    model, optimizer = trained_once()
    state = TrainState(stage=1, step=step, seconds=step / 2)
    return save_training(run_dir, step, state, model, tiny.processor(), optimizer, keep=2, ema=ema)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with the checkpoints of steps 10 and 20; that of 5 was deleted."""
    run_dir = tmp_path_factory.mktemp("run")
    for step in (5, 10, 20):
        seed_process(step, 0)
        save(run_dir, step)
    return run_dir


@pytest.fixture
def run_dir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_only_the_newest_checkpoints_are_kept(saved: Path) -> None:
    assert [folder.name for folder in checkpoints(saved)] == ["step-0000010", "step-0000020"]
    assert newest_valid(saved) == (saved / "step-0000020", [])
    assert checkpoints(saved / "nowhere") == []
    assert newest_valid(saved / "nowhere") == (None, [])


def test_moments_and_progress_are_restored(saved: Path) -> None:
    model, optimizer = trained_once()
    other = build_optimizer(model, OptimConfig())
    load_moments(saved / "step-0000020", model, other)
    assert read_state(saved / "step-0000020") == TrainState(1, 20, 10.0)
    ours, loaded = optimizer.state_dict(), other.state_dict()
    assert ours["param_groups"] == loaded["param_groups"]
    assert set(ours["state"]) == set(loaded["state"])
    assert len(ours["state"]) < len(list(model.parameters()))  # some parts had no gradient, and have no moments
    for index, moments in ours["state"].items():
        assert {"exp_avg", "exp_avg_sq", "step"} == set(moments)
        assert all(torch.equal(tensor, loaded["state"][index][key]) for key, tensor in moments.items())


def test_weights_and_averages_are_model_folders(tmp_path: Path) -> None:
    model, _ = trained_once()
    ema = Ema(model, EmaConfig(decay=0.5))
    ema.tensors["encoder.layer_norm.weight"].fill_(3.0)
    folder = save(tmp_path, 1, ema)
    raw, _ = load_model(folder / "model")
    averaged, _ = load_model(folder / "ema")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in raw.state_dict().items())
    assert all(torch.equal(tensor, ema.tensors[name]) for name, tensor in untied(averaged).items())


def test_moments_of_another_model_are_refused(saved: Path) -> None:
    model = tiny.build_model(**NO_ENCODERS, encoder_ffn_dim=48)
    with pytest.raises(UserError, match=r"moments do not fit: encoder\.layers\.0\.fc1"):
        load_moments(saved / "step-0000020", model, build_optimizer(model, OptimConfig()))


def test_a_checkpoint_of_another_version_is_refused(run_dir: Path) -> None:
    path = run_dir / "step-0000020" / "state.json"
    path.write_text(json.dumps({"stage": 0, "step": 1, "seconds": 0.0}))
    with pytest.raises(UserError, match="has format 1, this version reads 2"):
        read_state(path.parent)


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist(), random.gauss(0, 1)  # noqa: NPY002

    seed_process(3, 1)
    random.gauss(0, 1)  # leaves a second number behind
    np.random.standard_normal()  # noqa: NPY002 - so does this
    save_random(tmp_path / "random.safetensors", CPU)
    first = draw()
    assert draw() != first
    load_random(tmp_path / "random.safetensors", CPU)
    assert draw() == first


def test_processes_draw_different_numbers_and_the_main_one_those_of_its_seed() -> None:
    found = []
    for rank in range(3):
        seed_process(7, rank)
        found.append((torch.rand(1).item(), random.random()))
    assert len(set(found)) == 3
    torch.manual_seed(7)
    assert torch.rand(1).item() == found[0][0]


# ----------------------------------------------------------------------------------------------------------- damage
def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_the_manifest_covers_every_file(saved: Path) -> None:
    folder = saved / "step-0000020"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {path.relative_to(folder).as_posix() for path in files(folder)} - {"manifest.json"}
    assert manifest["state.json"] == digest(folder / "state.json")
    assert manifest["state.json"]["bytes"] == (folder / "state.json").stat().st_size


def test_a_hundred_flipped_bits_and_fifty_truncations_are_all_found(run_dir: Path) -> None:
    draws, folder = random.Random(0), run_dir / "step-0000020"
    for number in range(150):
        path = draws.choice(files(folder))
        content = path.read_bytes()
        if number < 100:
            place = draws.randrange(8 * len(content))
            damaged = bytearray(content)
            damaged[place // 8] ^= 1 << place % 8
        else:
            damaged = bytearray(content[: draws.randrange(len(content))])
        path.write_bytes(damaged)
        problem = problem_with(folder)
        assert problem is not None, f"{number}: {path}"
        if number % 10 == 0:
            assert newest_valid(run_dir) == (run_dir / "step-0000010", [f"skipped step-0000020: {problem}"])
        path.write_bytes(content)
    assert problem_with(folder) is None


@pytest.mark.parametrize("name", ["model/model.safetensors", "random-00000.safetensors", "state.json"])
def test_damage_is_named(run_dir: Path, name: str) -> None:
    path = run_dir / "step-0000020" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert problem_with(run_dir / "step-0000020") == f"{name} is damaged"
    path.unlink()
    assert problem_with(run_dir / "step-0000020") == f"{name} is missing"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"state.json": 3}'])
def test_a_damaged_or_missing_manifest_makes_a_checkpoint_invalid(run_dir: Path, content: str | None) -> None:
    manifest = run_dir / "step-0000020" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    folder, skipped = newest_valid(run_dir)
    assert folder == run_dir / "step-0000010"
    assert len(skipped) == 1


def test_a_file_that_nobody_wrote_makes_a_checkpoint_invalid(run_dir: Path) -> None:
    (run_dir / "step-0000020" / "optimizer" / "more.safetensors").write_bytes(b"")
    assert problem_with(run_dir / "step-0000020") == "optimizer/more.safetensors is not in manifest.json"


def test_leftovers_of_killed_writes_are_cleaned_up(run_dir: Path) -> None:
    (run_dir / ".step-0000030.tmp").mkdir()
    (run_dir / ".step-0000030.tmp" / "state.json").write_text("{")
    shutil.copytree(run_dir / "step-0000020", run_dir / ".step-0000020.old-9")
    (run_dir / "step-0000010").rename(run_dir / ".step-0000010.old-9")  # killed before the new one took its place
    assert [folder.name for folder in checkpoints(run_dir)] == ["step-0000020"]
    clean_up(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["step-0000010", "step-0000020"]
    assert problem_with(run_dir / "step-0000010") is None


def test_modes_follow_the_umask(saved: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in files(saved):
        if path.name != "manifest.json":
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


# --------------------------------------------------------------------------------------------------- failing writes
WRITES = [
    (saving, "write_model"),
    (saving, "save_random"),
    (saving.dcp, "save"),
    (saving, "digest"),
    (checkpoint, "sync"),
    (saving, "flush"),
    (saving, "publish"),
]


def failing(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls = iter(range(times))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is not None:
            raise OSError(28, "No space left on device")
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(("module", "name"), WRITES, ids=[name for _, name in WRITES])
def test_a_write_that_fails_once_is_repeated(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: Any, name: str
) -> None:
    monkeypatch.setattr(saving, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(module, name, failing(getattr(module, name), 1))
    save(run_dir, 30)
    assert newest_valid(run_dir) == (run_dir / "step-0000030", [])
    assert "writing step-0000030 failed, trying again: [Errno 28] No space left on device" in " ".join(
        capsys.readouterr().err.split()
    )
    assert sorted(path.name for path in run_dir.iterdir()) == ["step-0000020", "step-0000030"]


@pytest.mark.parametrize(("module", "name"), WRITES, ids=[name for _, name in WRITES])
def test_on_a_full_disk_the_older_checkpoints_stay_and_one_message_says_so(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    monkeypatch.setattr(saving, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(module, name, failing(getattr(module, name), 3))
    message = r"step-0000030 could not be written: .*No space left on device.*MB.*goes on from step-0000020"
    with pytest.raises(UserError, match=message):
        save(run_dir, 30)
    assert sorted(path.name for path in run_dir.iterdir()) == ["step-0000010", "step-0000020"]
    assert newest_valid(run_dir) == (run_dir / "step-0000020", [])


# -------------------------------------------------------------------------------------------------------- retention
def fake(run_dir: Path, step: int) -> None:
    folder = run_dir / f"step-{step:07d}"
    folder.mkdir()
    (folder / "state.json").write_text(str(step))
    (folder / "manifest.json").write_text(json.dumps({"state.json": digest(folder / "state.json")}))


def cut_free(folder: Path) -> bool:
    return problem_with(folder, by_hash=False) is None


@settings(max_examples=200)
@given(actions=st.lists(st.tuples(st.sampled_from(["save", "cut", "flip", "kill"]), st.integers(0, 9))))
def test_the_newest_valid_checkpoint_is_never_deleted(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    for step, (action, which) in enumerate(actions):
        found = checkpoints(run_dir)
        if action == "save":
            fake(run_dir, step)
            prune(run_dir, keep=2)  # only ever after a save
            assert newest_valid(run_dir) == (run_dir / f"step-{step:07d}", [])
            intact = [folder for folder in checkpoints(run_dir) if problem_with(folder, by_hash=False) is None]
            assert len(intact) == min(2, len([folder for folder in found if cut_free(folder)]) + 1)
        elif action == "kill":
            (run_dir / f".step-{step:07d}.tmp").mkdir()
        elif action in {"cut", "flip"} and found:
            path = found[which % len(found)] / "state.json"
            path.write_text("" if action == "cut" else "?" * len(path.read_text()))
        before, _ = newest_valid(run_dir)
        clean_up(run_dir)
        assert newest_valid(run_dir)[0] == before
        assert not list(run_dir.glob(".*"))
    shutil.rmtree(run_dir)
