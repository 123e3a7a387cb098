"""Training from a configuration to a model: the loss falls, an interrupted run equals an uninterrupted one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import unival.evaluate
from tests import tiny
from tests.ranks import hashes
from unival.checkpoint import load_model, save_model
from unival.config import dump_config
from unival.data.mixture import RowSlice, StageBatches
from unival.errors import UserError
from unival.schema import RunConfig
from unival.train import Interrupted, StageLoop, add_encoders, main, train
from unival.training.building import start
from unival.training.optim import freeze
from unival.training.saving import checkpoints
from unival.training.stop import StopSignal, interruptible

ROOT = Path(__file__).resolve().parents[2]
STEPS = (5, 3)
MEASURED = {"seconds", "samples_per_second", "data_wait", "memory_gb"}
GOLDEN_LOSSES = [8.7118, 6.8890, 6.1505, 5.4976]


def config_of(out: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate(tiny.run_settings(out, STEPS, **changes))


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without what a clock wrote."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in MEASURED} for line in lines]


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    assert train(config_of(run_dir)) == run_dir / "model"
    return run_dir


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Send SIGTERM in the middle of the n-th step from now on."""
    step = StageLoop.step

    def arrange(number: int) -> None:
        calls = iter(range(1, 100))

        def interrupted(self: StageLoop, *args: Any) -> dict[str, float]:
            if next(calls) == number:
                signal.raise_signal(signal.SIGTERM)
            return step(self, *args)

        monkeypatch.setattr(StageLoop, "step", interrupted)

    yield arrange
    monkeypatch.undo()


def test_every_step_is_logged_and_the_loss_falls(uninterrupted: Path) -> None:
    found = rows(uninterrupted)
    assert [row["step"] for row in found] == list(range(sum(STEPS)))
    assert [row["stage"] for row in found] == ["image"] * STEPS[0] + ["image-video"] * STEPS[1]
    assert set(found[0]) == {"step", "stage", "loss", "loss/image_caption", "loss/image_vqa", "grad_norm", "lr"}
    assert "loss/video_caption" in found[-1]
    assert found[0]["loss"] == pytest.approx(6.0, abs=1.0)  # about log(300)
    assert found[-1]["loss"] < found[0]["loss"] - 0.5
    for row in found:
        groups = [[v for k, v in row.items() if k.startswith(f"loss/{m}")] for m in ("image", "video")]
        assert min(map(min, filter(None, groups))) <= row["loss"] <= max(map(max, filter(None, groups)))


def test_the_result_is_a_model_with_both_encoders_and_its_own_processor(uninterrupted: Path) -> None:
    model, processor = load_model(uninterrupted / "model")
    assert model.config.video_encoder == tiny.VIDEO_ENCODER
    assert model.config.audio_encoder is None
    assert len(processor.tokenizer) == model.config.vocab_size
    assert (processor.image_px, processor.num_bins) == (24, tiny.NUM_BINS)
    assert not model.training
    assert [folder.name for folder in checkpoints(uninterrupted)] == ["step-0000007", "step-0000008"]
    assert json.loads((uninterrupted / "versions.json").read_text())["torch"] == torch.__version__


@pytest.mark.parametrize(
    "stops",
    [
        # within stage 1, an odd number of steps after the last checkpoint; then between the stages
        pytest.param([3, 2], marks=pytest.mark.slow),
        [1, 1, 4, 2],  # after each of the first steps, within stage 2, after the last step
    ],
)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: Path, stop_at: Callable[[int], None], stops: list[int]
) -> None:
    config = config_of(tmp_path / "run")
    for number in stops:
        stop_at(number)
        with pytest.raises(Interrupted, match="the same command continues"):
            train(config)
        assert not (tmp_path / "run" / "model").exists()
    stop_at(99)
    train(config)
    assert same(weights(tmp_path / "run"), weights(uninterrupted))
    assert rows(tmp_path / "run") == rows(uninterrupted)
    assert hashes(tmp_path / "run", "step-0000008") == hashes(uninterrupted, "step-0000008")


def test_a_damaged_checkpoint_is_passed_over_and_the_result_is_the_same(
    tmp_path: Path, uninterrupted: Path, stop_at: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path / "run", show_every=3, show=1)
    stop_at(4)
    with pytest.raises(Interrupted):
        train(config)
    path = tmp_path / "run" / "step-0000004" / "random-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    stop_at(99)
    train(config)
    errors = " ".join(capsys.readouterr().err.split())
    assert "skipped step-0000004: random-00000.safetensors is damaged going on from step-0000002" in errors
    assert same(weights(tmp_path / "run"), weights(uninterrupted))
    samples = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [3, 8, 8]  # the first was shown twice


def test_workers_do_not_change_the_result(tmp_path: Path, uninterrupted: Path) -> None:
    train(config_of(tmp_path / "run", workers=1))
    assert same(weights(tmp_path / "run"), weights(uninterrupted))


def test_another_seed_gives_another_model(tmp_path: Path, uninterrupted: Path) -> None:
    train(config_of(tmp_path / "run", seed=2, stages=tiny.run_settings(tmp_path, (1, 1))["stages"][:1]))
    ours, theirs = rows(tmp_path / "run")[0]["loss"], rows(uninterrupted)[0]["loss"]
    assert ours != theirs


def test_a_complete_run_is_left_alone_and_another_one_refused(tmp_path: Path, uninterrupted: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    (run_dir / "config.yaml").unlink()
    dump_config(config_of(run_dir), run_dir / "config.yaml")
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    train(config_of(run_dir))
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    with pytest.raises(UserError, match=r"another configuration: seed was 1 and is 2 .*--fresh"):
        train(config_of(run_dir, seed=2))
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_a_run_that_failed_before_its_first_step_is_begun_anew_with_another_configuration(
    tmp_path: Path, initial: Path, manifest: Path
) -> None:
    answers = {"objective": {"args": {"answers": {"caption": ["not one of the captions"]}}}}
    with pytest.raises(UserError, match="is not among the answers"):
        train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 1} | answers))
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 1}))
    assert len(rows(tmp_path / "run")) == 1


def test_fresh_starts_over(tmp_path: Path, uninterrupted: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    stages = tiny.run_settings(run_dir, (1, 1))["stages"][:1]
    train(config_of(run_dir, stages=stages), fresh=True)
    assert len(rows(run_dir)) == 1
    assert [folder.name for folder in checkpoints(run_dir)] == ["step-0000001"]


# ------------------------------------------------------------------------------------------------------ fine-tuning
@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of six captioned pictures, which does not depend on the embedded world."""
    folder = tmp_path_factory.mktemp("manifest")
    captions = ["a red apple above a cat", "a dog left of a blue cup", "a cat", "a blue cat", "a red dog", "an apple"]
    lines = []
    for index, caption in enumerate(captions):
        Image.fromarray(tiny.picture(index)).save(folder / f"{index}.png")
        lines.append(json.dumps({"uid": str(index), "image": f"{index}.png", "captions": [caption]}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("initial") / "model", tiny.build_model(), tiny.processor())


def fine_tuning(out: Path, initial: Path, manifest: Path, stage: dict[str, Any], **changes: Any) -> RunConfig:
    task = {"task": "caption", "source": {"manifest": str(manifest)}}
    optim = {"lr": 3e-3, "schedule": "constant", "warmup_ratio": 0.0}
    stage = {"name": "tune", "steps": 3, "groups": [{"rows": 3, "tasks": [task]}], "optim": optim} | stage
    settings = {"out": str(out), "init": str(initial), "stages": [stage], "threads": 1, "workers": 0, "log_every": 1}
    return RunConfig.model_validate(settings | {"precision": "fp32"} | changes)


def test_losses_of_one_seed_are_the_recorded_ones(tmp_path: Path, initial: Path, manifest: Path) -> None:
    """A change that is meant to keep training as it is keeps these numbers; another one replaces them here."""
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 4}))
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    # float32: four updates, of which Adam's first amplify rounding, on processors with other vector units.
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=2e-3)


@pytest.mark.parametrize("normalise", ["token", "batch"])
def test_an_update_of_two_groups_is_that_of_the_sum_of_their_losses(
    tmp_path: Path, initial: Path, manifest: Path, normalise: str
) -> None:
    """By hand: `loss_1 / n_1 + loss_2 / n_2`, of the update or of each pair of batches, clipped as a whole."""
    task = {"task": "caption", "source": {"manifest": str(manifest)}}
    stage = {
        "steps": 1,
        "groups": [{"rows": 4, "tasks": [task]}, {"rows": 2, "tasks": [task | {"task_args": {"prompt": "what?"}}]}],
        "objective": {"args": {"normalise": normalise}},
        "optim": {
            "lr": 0.1,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "eps": 1.0,
            "clip_norm": 4.0,
        },
        "freeze_batchnorm": True,
    }
    still = {"dropout": 0.0, "drop_path": 0.0}
    config = fine_tuning(tmp_path / "run", initial, manifest, stage, model=still, accumulation=2)
    train(config)

    model, processor = load_model(initial)
    freeze(model, config.stages[0])
    batches = StageBatches(config.stages[0], processor, config.seed, RowSlice(0, 1, 2))
    sums, tokens = [], []
    for batch in (batch for number in range(2) for batch in batches[number]):
        tokens.append(int(batch.target.ne(model.config.pad_token_id).sum()))
        sums.append(model(**batch.inputs, labels=batch.target).loss * tokens[-1])
    assert tokens[0] != tokens[2]  # or both would be the same
    if normalise == "token":
        losses = [(sums[g] + sums[g + 2]) / (tokens[g] + tokens[g + 2]) for g in range(2)]
    else:
        losses = [(sums[g] / tokens[g] + sums[g + 2] / tokens[g + 2]) / 2 for g in range(2)]
    loss = torch.stack(losses).sum()
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.grad is not None}
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), 4.0).item()
    assert norm > 1.1 * 4.0

    (row,) = rows(tmp_path / "run")
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["loss"] == pytest.approx(loss.item() / 2, rel=1e-5)
    for name, after in weights(tmp_path / "run").items():
        if name in trained:
            gradient = trained[name].grad
            assert gradient is not None
            update = 0.1 * gradient / (gradient.abs() + 1.0)  # the first of AdamW, whose eps of 1 lets the norm be seen
            torch.testing.assert_close(after, trained[name].detach() - update, atol=1e-6, rtol=1e-5)


def test_frozen_parameters_keep_every_bit(tmp_path: Path, initial: Path, manifest: Path) -> None:
    frozen = ["encoder.embed_images", "encoder.layers.0", "decoder.layers.1.fc1.weight"]
    stage = {"freeze": frozen, "freeze_batchnorm": True}
    train(fine_tuning(tmp_path / "run", initial, manifest, stage))
    before, after = load_file(initial / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert not any(name.startswith(tuple(frozen)) for name in changed)
    assert {"encoder.layers.1.fc1.weight", "decoder.layers.1.fc2.weight", "encoder.image_proj.weight"} <= changed


def test_without_freezing_everything_that_is_used_is_trained(tmp_path: Path, initial: Path, manifest: Path) -> None:
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 1}))
    before, after = load_file(initial / "model.safetensors"), weights(tmp_path / "run")
    kept = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    unused = ("video", "audio", "code_layernorm", "embed_image_positions", "image_pos_ln", "image_rel_pos_table")
    allowed = {name for name in kept if any(part in name for part in unused) or "melW" in name}
    # Counters of unused encoders and the padding row aside, only decoder tables for picture codes stay.
    assert kept == allowed
    assert not any(name.startswith("encoder.image") for name in kept)


def test_a_prefix_that_matches_nothing_is_refused(tmp_path: Path, initial: Path, manifest: Path) -> None:
    with pytest.raises(UserError, match=r"no parameter starts with 'encoder\.embed_pictures'"):
        train(fine_tuning(tmp_path / "run", initial, manifest, {"freeze": ["encoder.embed_pictures"]}))


def test_encoders_join_without_changing_any_other_weight(manifest: Path) -> None:
    model = tiny.build_model(audio_encoder=None)
    stage = fine_tuning(Path("x"), Path("y"), manifest, {"add": {"audio_encoder": tiny.AUDIO_ENCODER}}).stages[0]
    joined = add_encoders(model, stage, {})
    before, after = model.state_dict(), joined.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    new = set(after) - set(before)
    assert new
    assert all(name.startswith(("encoder.embed_audio", "encoder.audio_proj")) for name in new)
    assert after["encoder.embed_audios.logmel_extractor.melW"].sum() > 0
    assert joined.config.audio_encoder == tiny.AUDIO_ENCODER
    assert joined.decoder.output_projection.weight is joined.encoder.embed_tokens.weight
    inputs = tiny.prompt_ids(["what is left of the cat?"]) | tiny.media("image", 1)
    start = torch.zeros(1, 1, dtype=torch.long)
    ours = model(**inputs, decoder_input_ids=start).logits
    assert torch.equal(joined.eval()(**inputs, decoder_input_ids=start).logits, ours)
    assert add_encoders(model, stage.model_copy(update={"add": {}}), {}) is model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"dropuot": 0.1}}, r"unknown model option 'dropuot'.*did you mean 'dropout'"),
        ({"model": {"d_model": 32}}, "change the shape of"),
        ({"init": "nowhere"}, "no such model folder: nowhere"),
        ({"init": None, "model": {"d_modle": 32}}, r"unknown model option 'd_modle'.*did you mean 'd_model'"),
        ({"init": None, "model": {"num_bins": 7}}, "unknown model option 'num_bins'"),
        ({"init": None, "model": {"video_encoder": {"depth": [1]}}}, r"unknown video_encoder option 'depth'.*depths"),
        ({"init": None, "model": {"image_encoder": {"name": "resnet1800"}}}, "'resnet1800' is not a timm model"),
        ({"init": None, "model": {"image_encoder": {"name": "resnet18", "chanels": [8]}}}, "chanels"),
        ({"init": None, "processor": {"image_size": 7}}, "unknown processor option 'image_size'"),
    ],
)
def test_options_that_no_model_has_are_refused(
    tmp_path: Path, initial: Path, manifest: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(fine_tuning(tmp_path / "run", initial, manifest, {}, **changes))


def test_weights_of_an_encoder_that_joins_later_wait_for_it(tmp_path: Path) -> None:
    settings = tiny.run_settings(tmp_path / "run", STEPS)
    assert settings["stages"][1]["add"].keys() == {"video_encoder"}
    settings["model"] |= {"video_encoder": None}
    config = RunConfig.model_validate(settings | {"encoder_weights": {"video_encoder": "not-read-yet"}})
    model, _ = start(config)
    assert model.config.video_encoder is None


def test_an_unknown_encoder_cannot_join(tmp_path: Path, initial: Path, manifest: Path) -> None:
    with pytest.raises(UserError, match="add: 'smell_encoder' is not an encoder"):
        train(fine_tuning(tmp_path / "run", initial, manifest, {"add": {"smell_encoder": {}}}))


def test_a_gradient_that_is_not_a_number_stops_the_run(tmp_path: Path, initial: Path, manifest: Path) -> None:
    optim = {"lr": 1e30, "schedule": "constant", "warmup_ratio": 0.0}
    with pytest.raises(UserError, match=r"training diverged: the gradient norm is .* at step .* of stage tune"):
        train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 9, "optim": optim}))
    assert not (tmp_path / "run" / "model").exists()


def test_evaluations_run_after_training_and_keep_every_prediction(
    tmp_path: Path, initial: Path, manifest: Path
) -> None:
    evaluation = {"name": "captions", "task": "caption", "source": {"manifest": str(manifest)}, "batch_size": 4}
    config = fine_tuning(tmp_path / "run", initial, manifest, {"steps": 1}, evaluations=[evaluation])
    train(config)
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    lines = (tmp_path / "run" / "predictions-captions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    assert [row["uid"] for row in predictions] == [str(i) for i in range(6)]
    mean = sum(row["scores"]["exact"] for row in predictions) / 6
    assert report["captions"]["metrics"]["exact"]["mean"] == pytest.approx(mean)
    assert report["captions"]["samples"] == 6
    (tmp_path / "run" / "evaluation.json").unlink()
    train(config)  # trained already, only evaluated again
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == report


def test_a_model_learns_six_captions_by_heart(tmp_path: Path, initial: Path, manifest: Path) -> None:
    """The whole path works: 60 steps on six pictures, then every caption is generated."""
    evaluation = {"name": "captions", "task": "caption", "source": {"manifest": str(manifest)}}
    stage = {"steps": 60, "optim": {"lr": 1e-2, "warmup_ratio": 0.1}}
    stage["groups"] = [{"rows": 6, "tasks": [{"task": "caption", "source": {"manifest": str(manifest)}}]}]
    train(fine_tuning(tmp_path / "run", initial, manifest, stage, evaluations=[evaluation]))
    found = rows(tmp_path / "run")
    assert found[-1]["loss"] < 0.1 < 2.0 < found[0]["loss"]
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["captions"]["metrics"]["exact"]["mean"] == 1.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once_with_its_own_code(number: int, code: int) -> None:
    @interruptible()
    def run() -> None:
        with StopSignal():
            signal.raise_signal(number)
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == code


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_exits_with_143(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    dump_config(RunConfig.model_validate(tiny.run_settings(run_dir, (2000, 1))), tmp_path / "config.yaml")
    command = [sys.executable, "-m", "unival.cli", "train", str(tmp_path / "config.yaml")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not checkpoints(run_dir) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 143
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    newest = checkpoints(run_dir)[-1]
    assert f"step {int(newest.name.removeprefix('step-'))};" in errors
    assert json.loads((newest / "state.json").read_text())["step"] == int(newest.name.removeprefix("step-"))


# ------------------------------------------------------------------------------------------- validation and extras
def validated(out: Path, initial: Path, manifest: Path, stage: dict[str, Any], **changes: Any) -> RunConfig:
    evaluation = {"name": "captions", "task": "caption", "source": {"manifest": str(manifest)}, "batch_size": 6}
    validation = {"every": 1, "evaluations": [evaluation], "monitor": "captions/exact"} | stage.pop("validation", {})
    return fine_tuning(out, initial, manifest, {"validation": validation} | stage, **changes)


def test_a_stage_ends_when_patience_does_and_with_its_best_weights(
    tmp_path: Path, initial: Path, manifest: Path
) -> None:
    validation = {"patience": 1, "restore_best": True, "keep_best": 1}
    optim = {"lr": 1e-8, "schedule": "constant", "warmup_ratio": 0.0}  # learns nothing: the first is the best
    stage = {"steps": 9, "validation": validation, "optim": optim}
    train(validated(tmp_path / "run", initial, manifest, stage, ema={"decay": 0.5}))
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found if "loss" in row] == [0, 1]
    assert [row["step"] for row in found if "validation/captions/exact" in row] == [0, 1]
    best = tmp_path / "run" / "best"
    assert [path.name for path in best.iterdir()] == ["tune-step-0000001"]
    assert same(weights(tmp_path / "run"), load_file(best / "tune-step-0000001" / "model" / "model.safetensors"))
    averages = load_file(tmp_path / "run" / "ema" / "model.safetensors")
    assert same(averages, load_file(best / "tune-step-0000001" / "ema" / "model.safetensors"))
    assert not same(averages, weights(tmp_path / "run"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "no manifest"])
def test_a_damaged_best_model_is_never_taken(
    tmp_path: Path, initial: Path, manifest: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    run = tmp_path / "run"
    validation = {"restore_best": True, "keep_best": 1}
    optim = {"lr": 1e-8, "schedule": "constant", "warmup_ratio": 0.0}  # learns nothing: the first is the best
    stage = {"steps": 3, "validation": validation, "optim": optim}
    config = validated(run, initial, manifest, stage, checkpoint_every=1, keep_checkpoints=9)
    train(config)
    best = run / "best" / "tune-step-0000001" / "model" / "model.safetensors"
    content = bytearray(best.read_bytes())
    for path in (run / "model", run / "step-0000003"):  # as if the run had been killed before the last step
        shutil.rmtree(path)
    if damage == "flipped":
        content[-1000] ^= 0x40
        best.write_bytes(content)
    elif damage == "cut":
        best.write_bytes(content[:-1000])
    elif damage == "no manifest":  # of a run that an older version began
        (best.parents[1] / "manifest.json").unlink()
    else:
        shutil.rmtree(best.parents[1])
    train(config)
    if damage == "no manifest":
        assert same(weights(run), load_file(best))
        return
    said = " ".join(capsys.readouterr().err.split())
    names = {"gone": "it is missing"}.get(damage, "model/model.safetensors is damaged")
    assert f"skipped best/tune-step-0000001: {names}" in said
    assert [path.name for path in (run / "best").iterdir()] == ["tune-step-0000003"]
    assert same(weights(run), load_file(run / "best" / "tune-step-0000003" / "model" / "model.safetensors"))


def test_a_best_model_that_is_damaged_while_the_run_goes_on_stops_it(
    tmp_path: Path, initial: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"steps": 1, "validation": {"restore_best": True}}
    monkeypatch.setattr("unival.train.problem_with_best", lambda folder: "model/model.safetensors is damaged")
    with pytest.raises(UserError, match=r"best model cannot be taken: model/model.safetensors is damaged"):
        train(validated(tmp_path / "run", initial, manifest, stage))
    assert not (tmp_path / "run" / "model").exists()


def test_shown_samples_are_asked_as_their_own_entry_of_the_group(tmp_path: Path, initial: Path) -> None:
    source = {"world": "train", "content": "vqa"}
    tasks = [{"task": "vqa", "source": source, "task_args": {"candidates": [answer]}} for answer in ("purple", "no")]
    groups = [{"rows": 2, "image_px": 48, "tasks": tasks}]
    train(fine_tuning(tmp_path / "run", initial, tmp_path, {"steps": 1, "groups": groups}, show_every=1, show=2))
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert sorted(row["prediction"] for row in samples) == ["no", "purple"]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("unival.training.run_folder.dump_config", "the run folder"),
        ("unival.log.append", r"metrics\.jsonl"),
        ("unival.training.validation.append", r"samples\.jsonl"),
        ("unival.training.validation.write_model", r"best/tune-step-0000001"),
        ("unival.train.save_model", "the final model"),
    ],
)
def test_a_full_disk_is_one_message_whatever_is_written(
    tmp_path: Path, initial: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, function: str, what: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unival.training.saving.RETRY_SECONDS", ())
    monkeypatch.setattr(function, full)
    with pytest.raises(UserError, match=rf"{what} could not be written: .*No space left on device.*MB are free"):
        train(validated(tmp_path / "run", initial, manifest, {"steps": 1}, show_every=1))
    assert not list((tmp_path / "run").rglob(".*"))


def test_validation_and_shown_samples_leave_training_as_it_is(tmp_path: Path, initial: Path, manifest: Path) -> None:
    train(validated(tmp_path / "with", initial, manifest, {"steps": 2}, show_every=1, show=2))
    train(fine_tuning(tmp_path / "without", initial, manifest, {"steps": 2}))
    assert same(weights(tmp_path / "with"), weights(tmp_path / "without"))
    samples = [json.loads(line) for line in (tmp_path / "with" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [1, 1, 2, 2]
    assert set(samples[0]) == {"step", "task", "uid", "prompt", "target", "prediction"}


@pytest.mark.parametrize(
    ("signals", "stopped_at"),
    [
        ({1: signal.SIGTERM, 3: signal.SIGUSR1}, 1),  # in the validation after step 1, which goes on; in the last one
        ({1: signal.SIGUSR1, 4: signal.SIGTERM}, 2),  # in the last batch of the last validation
    ],
)
def test_a_signal_halts_a_validation_which_goes_on_with_its_rows(
    tmp_path: Path,
    initial: Path,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals: dict[int, signal.Signals],
    stopped_at: int,
) -> None:
    def config(name: str) -> RunConfig:
        evaluation = {"name": "captions", "task": "caption", "source": {"manifest": str(manifest)}, "batch_size": 3}
        validation = {"evaluations": [evaluation], "keep_best": 2}
        return validated(tmp_path / name, initial, manifest, {"steps": 2, "validation": validation})

    train(config("whole"))
    predict_rows, predicted = unival.evaluate.predict_rows, list[list[int]]()

    def counted(*args: Any) -> Any:
        predicted.append(list(args[3].indices))
        if len(predicted) in signals:
            signal.raise_signal(signals[len(predicted)])
        return predict_rows(*args)

    monkeypatch.setattr("unival.evaluate.predict_rows", counted)
    with pytest.raises(Interrupted, match=f"stopped at step {stopped_at};"):
        train(config("run"))
    assert checkpoints(tmp_path / "run")[-1].name == f"step-000000{stopped_at}"
    train(config("run"))
    assert predicted == [[0, 1, 2], [3, 4, 5]] * 2  # nothing twice
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-0000001", "step-0000002"]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_precision_learns_the_same_within_its_rounding(
    tmp_path: Path, initial: Path, manifest: Path, precision: str
) -> None:
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 2}, precision=precision))
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert losses == pytest.approx(GOLDEN_LOSSES[:2], rel=0.05)
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32, torch.int64}


def test_an_update_that_fp16_skips_is_said_and_logged_without_a_number(
    tmp_path: Path, initial: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = {"lr": 1e-3, "loss_scale": 2.0**127}
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 1, "optim": optim}, precision="fp16"))
    errors = " ".join(capsys.readouterr().err.split())
    assert "step 1: no update, the gradient norm is" in errors
    assert "scaled by 8.50706e+37 from here on" in errors
    assert rows(tmp_path / "run")[0]["grad_norm"] is None


def test_checkpointed_activations_change_nothing(tmp_path: Path, initial: Path, manifest: Path) -> None:
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 2}, checkpoint_activations=True))
    assert [row["loss"] for row in rows(tmp_path / "run")] == pytest.approx(GOLDEN_LOSSES[:2], rel=2e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of torch inside its compiler
def test_compiled_layers_compute_the_same(tmp_path: Path, initial: Path, manifest: Path) -> None:
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 2}, compile=True))
    assert [row["loss"] for row in rows(tmp_path / "run")] == pytest.approx(GOLDEN_LOSSES[:2], rel=2e-3)


def test_sigusr1_writes_a_checkpoint_and_the_run_goes_on(
    tmp_path: Path, initial: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = StageLoop.step

    def signalled(self: StageLoop, number: int, *args: Any) -> dict[str, float]:
        if number == 1:
            signal.raise_signal(signal.SIGUSR1)
        return step(self, number, *args)

    def finish(self: StageLoop) -> Any:
        signal.raise_signal(signal.SIGUSR1)  # when no stage is running
        return finished(self)

    finished = StageLoop.finish
    monkeypatch.setattr(StageLoop, "step", signalled)
    monkeypatch.setattr(StageLoop, "finish", finish)
    train(fine_tuning(tmp_path / "run", initial, manifest, {"steps": 4}))
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-0000002", "step-0000004"]


def test_a_run_may_start_from_a_checkpoint_of_another(tmp_path: Path, initial: Path, manifest: Path) -> None:
    first = fine_tuning(tmp_path / "one", initial, manifest, {"steps": 3}, checkpoint_every=2)
    train(first)
    checkpoint = tmp_path / "one" / "step-0000002"
    train(first.model_copy(update={"out": str(tmp_path / "two"), "resume": str(checkpoint)}))
    assert [row["step"] for row in rows(tmp_path / "two")] == [2]
    assert same(weights(tmp_path / "two"), weights(tmp_path / "one"))
    stage = first.stages[0].model_copy(update={"steps": 2})
    longer = first.stages[0].model_copy(update={"steps": 5})
    end, three = tmp_path / "one" / "step-0000003", {"out": str(tmp_path / "three")}
    for changes, message in (
        ({"stages": [stage]}, r"stands at stage 1, step 2, and stages\.0\.steps is 2.*resume, .*step-0000002"),
        ({"resume": str(end)}, r"stands at stage 2, step 0, and this run ends with stage 1.*resume, .*step-0000003"),
        (
            {"resume": str(end), "stages": [longer, longer.model_copy(update={"name": "b"})]},
            r"stands at stage 2, step 0, after 3 steps; this run stands there after 5.*`steps` again",
        ),
        ({"model": {"dropout": 0.5}}, r"model\.dropout is 0\.5, and 0\.0 in the checkpoint"),
        ({"processor": {"image_px": 32}}, r"processor\.image_px is 32, and 24 in the checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            train(first.model_copy(update={"resume": str(checkpoint)} | three | changes))
    (checkpoint / "state.json").unlink()
    with pytest.raises(UserError, match=r"resume: this checkpoint cannot be used: state\.json is missing"):
        train(first.model_copy(update=three | {"resume": str(checkpoint)}))
    assert not (tmp_path / "three").exists()


def test_a_continued_run_may_be_carried_out_in_another_way(tmp_path: Path, uninterrupted: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    train(config_of(run_dir, workers=1, log_every=7, accumulation=2))
    before = (run_dir / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"3 passes \(`accumulation`\).*stages\.0\.groups\.0\.rows"):
        train(config_of(run_dir, accumulation=3))
    assert (run_dir / "config.yaml").read_text() == before
    with pytest.raises(UserError, match="another configuration"):
        train(config_of(run_dir, precision="bf16"))


def test_one_process_cannot_share_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"parallel\.kind is fsdp, but torchrun started no processes"):
        train(config_of(tmp_path / "run", parallel={"kind": "fsdp"}))


def test_the_command_of_torchrun_trains_and_reports_mistakes(tmp_path: Path, uninterrupted: Path) -> None:
    with pytest.raises(UserError, match="which configuration"):
        main([])
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir)
    dump_config(config_of(run_dir), run_dir / "config.yaml")
    main([str(run_dir / "config.yaml"), "log_every=3"])  # complete: nothing is left to do
    with pytest.raises(UserError, match="log_evry"):
        main([str(run_dir / "config.yaml"), "log_evry=3"])
