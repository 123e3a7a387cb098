"""What users do, on the device of `tests.device` and on the CPU: the same numbers. Arguments are beginnings of names.

python -m tests.on_device generate "train: plain"
"""

import contextlib
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import device  # before everything else  # isort: skip

import torch
from safetensors.torch import load_file
from torch import Tensor

import unival.train as training
from soups.engine.live import LiveSoup
from soups.methods import get_method
from soups.state import open_checkpoint
from soups.sweep import Sweep
from tests import tiny
from unival.checkpoint import save_model
from unival.codec.train import fit, initialised, measure
from unival.codec.vqgan import VQGAN, CodecConfig
from unival.evaluate import SoupEvaluator
from unival.predict import Pipeline
from unival.schema import RunConfig, SourceConfig
from unival.soup_evaluator import ensemble, evaluator
from unival.training.distributed import World

REWARDED = {"rewards": {"cider_d": 1.0}, "max_new_tokens": 6}
VALIDATION = [{"name": "vqa", "task": "vqa", "source": {"world": "train", "limit": 2}}]
STAGES: dict[str, dict[str, Any]] = {
    "every term of the loss": {
        "objective": {
            "args": {"label_smoothing": 0.1, "drop_worst_ratio": 0.2, "log_end": 0.75, "rdrop": 1.0, "ignore_prefix": 1}
        },
        "optim": {"lr": 1e-2, "muon": ["encoder.layers"], "lr_scale": {"encoder.embed_images": 0.1}},
    },
    "self-critical": {
        "objective": {
            "name": "self_critical",
            "args": REWARDED | {"samples": 2, "baseline": "greedy", "supervised": 0.5},
        }
    },
    "grpo": {"objective": {"name": "grpo", "args": REWARDED | {"samples": 3}}},
    "all that a run does besides": {
        "validation": {"every": 1, "evaluations": VALIDATION, "monitor": "vqa/accuracy", "restore_best": True}
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "all that a run does besides": {
        "ema": {"decay": 0.9, "evaluate": True},
        "accumulation": 2,
        "checkpoint_activations": True,
        "show_every": 1,
        "show": 1,
    }
}
CODEC = CodecConfig(8, (1, 2, 4), 1, (), 32, 8, 16, is_gumbel=False, groups=1)


def both(work: Callable[[torch.device, Path], Any], folder: Path) -> None:
    """Require the same result on the CPU and on the device."""
    here = work(torch.device("cpu"), folder / "cpu")
    with device.elsewhere() as place:
        there = work(place, folder / "device")
    assert_same(here, there)


def assert_same(here: Any, there: Any, where: str = "") -> None:
    """Require equal tensors, or equal values, in the same places."""
    if isinstance(here, dict):
        assert list(here) == list(there)
        for name, value in here.items():
            assert_same(value, there[name], f"{where} {name}")
    elif isinstance(here, Tensor | float):
        found = there.here if isinstance(there, device.Elsewhere) else there
        torch.testing.assert_close(found, here, rtol=1e-5, atol=1e-6, msg=lambda problem: f"{where}: {problem}")
    elif isinstance(here, list):
        assert_same(dict(enumerate(here)), dict(enumerate(there)), where)
    else:
        assert here == there, (where, here, there)


@contextlib.contextmanager
def joined(place: torch.device) -> Iterator[None]:
    """Let runs compute on a device."""
    join = training.join
    training.join = lambda config, name: contextlib.nullcontext(World(device=place))
    try:
        yield
    finally:
        training.join = join


def train(changes: dict[str, Any], stage: dict[str, Any]) -> Callable[[torch.device, Path], dict[str, Tensor]]:
    """Return a training of two steps; it returns the weights that it wrote."""

    def run(place: torch.device, out: Path) -> dict[str, Tensor]:
        settings = tiny.run_settings(out, (1, 1), **changes)
        for each in settings["stages"]:
            each |= stage
            if "rewards" in stage.get("objective", {}).get("args", {}):  # of captions
                for group in each["groups"]:
                    group["tasks"] = [entry for entry in group["tasks"] if entry["task"] == "caption"]
        with joined(place):
            training.train(RunConfig.model_validate(settings))
        return load_file(out / "model" / "model.safetensors")

    return run


def resumed(place: torch.device, out: Path) -> dict[str, Tensor]:
    """Train, lose the last step, and make it again."""
    config = RunConfig.model_validate(tiny.run_settings(out, (1, 1), ema={"decay": 0.9}, checkpoint_every=1))
    with joined(place):
        training.train(config)
        for lost in ("model", "ema", "step-0000002"):
            shutil.rmtree(out / lost)
        training.train(config)
    return load_file(out / "model" / "model.safetensors")


def generate(place: torch.device, _: Path) -> dict[str, Tensor]:
    """Search, sample and score every modality."""
    model, found = tiny.build_model().to(place), {}
    prompts = tiny.prompt_ids(["what does the image describe?", "what is left?"])
    for modality in tiny.MODALITIES:
        inputs = {name: tensor.to(place) for name, tensor in (tiny.media(modality, 2) | prompts).items()}
        found[f"beams {modality}"] = model.generate(**inputs, num_beams=3, max_new_tokens=6)
        found[f"logits {modality}"] = model(**inputs, labels=prompts["input_ids"].to(place)).logits.detach()
    return found


def predict(place: torch.device, folder: Path) -> dict[str, Any]:
    """Describe, answer with and without candidates, and find."""
    save_model(folder / "model", tiny.build_model(), tiny.processor())
    pictures = [tiny.picture(seed, 40) for seed in range(3)]
    found: dict[str, Any] = {}
    for task, beams in (("caption", 3), ("vqa", 1), ("grounding", 1), ("entailment", 1)):
        run = Pipeline(task, folder / "model", beams, None, str(place))
        assert run.model.device == place
        text = None if task == "caption" else "what is left of the cat?"
        found[task] = [row["prediction"] for row in run(pictures, text)]
    closed = Pipeline("vqa", folder / "model", 1, ["red", "blue dog"], str(place))
    return found | {"closed": [row["prediction"] for row in closed(pictures, "what is this?")]}


def sweep(place: torch.device, folder: Path) -> dict[str, Any]:
    """Mix two models in memory and score the mixtures."""
    for number in range(2):
        save_model(folder / str(number), tiny.build_model(number), tiny.processor())
    parts = {"": {"task": "caption", "metrics": ["cider_d", "log_likelihood"]}}
    scored = evaluator(folder / "0", parts, limit=2, device=str(place))
    found: dict[str, Any] = {}
    opened = [open_checkpoint(folder / str(number)) for number in range(2)]
    for name in ("linear", "slerp"):
        soup = LiveSoup(Sweep(opened, get_method(name), "none:none"), scored.state())
        soup.write((0.25, 0.75))
        found[name] = {key: tensor.clone() for key, tensor in scored.state().items()}
        found[f"{name} scores"] = scored.evaluate()
        assert next(iter(scored.state().values())).device == place
    rows = tiny_rows()
    plain = SoupEvaluator(scored.model, scored.processor, rows[0], {"": rows[1]}, ["cider_d"], 4)
    rated = {"": {"task": "caption", "metrics": ["cider_d"]}}
    together = ensemble([folder / "0", folder / "1"], rated, limit=2, device=str(place))
    return found | {"plain": plain.evaluate(), "together": together.evaluate((0.5, 0.5))}


def tiny_rows() -> Any:
    """Return the captioning task and some rows."""
    from unival.data.source import open_source
    from unival.tasks.base import get_task

    return get_task("caption"), open_source(SourceConfig(world="test", limit=2), "caption", "image")


def codec(place: torch.device, _: Path) -> dict[str, Any]:
    """Train a codec for two steps and measure it."""
    torch.manual_seed(1)
    network = initialised(VQGAN(CODEC)).to(place)
    pictures = torch.rand(6, 3, 16, 16) * 2 - 1
    fit(network, pictures.to(place), 4, 2, 1e-3)
    return {"state": network.state_dict(), "errors": measure(network, pictures.to(place))}


SHORT = {"bf16": "self-critical", "fp16": "every term of the loss"}


def in_short_types(precision: str) -> Callable[[], None]:
    """Return a training on the device under autocast; weights and averages stay float32."""

    def run() -> None:
        work = train({"precision": precision, "ema": {"decay": 0.9}}, STAGES[SHORT[precision]])
        with tempfile.TemporaryDirectory() as folder, device.elsewhere() as place:
            weights = work(place, Path(folder) / "run")
        for name, tensor in weights.items():
            assert tensor.dtype in (torch.float32, torch.int64), (name, tensor.dtype)
            assert tensor.isfinite().all(), name

    return run


CHECKS: dict[str, Callable[[torch.device, Path], Any]] = {
    **{f"train: {name}": train(RUNS.get(name, {}), stage) for name, stage in STAGES.items()},
    "train: resumed": resumed,
    "generate": generate,
    "predict": predict,
    "sweep": sweep,
    "codec": codec,
}
ALONE: dict[str, Callable[[], None]] = {f"train: {precision}": in_short_types(precision) for precision in SHORT}


def main(names: list[str]) -> None:
    """Run checks; the last line of the output is a JSON object with the problem of each, or null."""
    found: dict[str, str | None] = {}
    for name in (*CHECKS, *ALONE):
        if not name.startswith(tuple(names) or ""):
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            try:
                ALONE[name]() if name in ALONE else both(CHECKS[name], Path(folder))
                found[name] = None
            except Exception:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
