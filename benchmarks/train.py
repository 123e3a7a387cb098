"""The training loop against a plain eager loop and against `transformers`' Trainer: same model, same batches.

    python benchmarks/train.py                       # unival-tiny, about a minute per side on a quiet machine
    python benchmarks/train.py --size base --steps 4 # the full model with random weights: 10 GB of memory
    python benchmarks/train.py --json

Ours is `unival.train.StageLoop` as `unival train` runs it: losses normalised by group, clipping, schedule, logs,
progress line, signals. The plain loop is what one writes in ten lines: forward pass with labels, backward pass,
clipping, AdamW. All sides take batches that were collated before, so none waits for data, and each runs in a process of
its own: peak memory is that process's. Trainer needs `accelerate` (extra `adapters`) and is left out without it.

Wall time and processor time are both given: on a busy machine only the second means something. The overhead of a loop
is the share of its processor time outside of losses (forward and backward pass), clipping and optimizer.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unival import train as loop_module
from unival.batch import Batch
from unival.checkpoint import load_model, quiet_transformers
from unival.data.mixture import StageBatches
from unival.log import MetricsLog, peak_resident
from unival.memory import keep_freed_memory
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.schema import RunConfig
from unival.training.distributed import World
from unival.training.saving import TrainState

WARM_UP = 5  # steps that do not count: kernels chosen, and memory, which a full-size step owns only by its fifth
SIDES = ("plain", "trainer", "ours")
TARGETS = {"speed in bf16": 2.0, "overhead": 0.03}
BASE: dict[str, Any] = {
    **{"d_model": 768, "attn_scale_factor": 2.0, "max_text_positions": 1024},
    **{f"{half}_layers": 6 for half in ("encoder", "decoder")},
    **{f"{half}_ffn_dim": 3072 for half in ("encoder", "decoder")},
    **{f"{half}_attention_heads": 12 for half in ("encoder", "decoder")},
    **{"text_bucket_size": 256, "image_bucket_size": 42, "code_image_size": 128},
    "image_encoder": {"name": "resnet101"},
}


class Timers:
    """Processor and wall seconds per step, and processor seconds inside the timed functions."""

    def __init__(self) -> None:
        self.starts: list[tuple[float, float]] = []
        self.end = (0.0, 0.0)
        self.inside = 0.0
        self.depth = 0

    def begin_step(self) -> None:
        """Note that a step begins; the warm-up is forgotten when the first step that counts does."""
        self.starts.append((time.process_time(), time.perf_counter()))
        if len(self.starts) == WARM_UP + 1:
            self.inside = 0.0

    def end_step(self) -> None:
        """Note that a step is over."""
        self.end = (time.process_time(), time.perf_counter())

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose processor time counts as inside; calls within calls count once."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start, self.depth = time.process_time(), self.depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.inside += time.process_time() - start

        return call

    def result(self) -> dict[str, float]:
        """Return seconds per step and the share of the processor time outside of the timed functions."""
        steps = len(self.starts) - WARM_UP
        cpu, wall = (self.end[i] - self.starts[WARM_UP][i] for i in (0, 1))
        return {"cpu": cpu / steps, "wall": wall / steps, "overhead": 1 - self.inside / cpu, "peak": peak_resident()}


def settings(options: argparse.Namespace, out: Path) -> RunConfig:
    """Return the run that every side makes: the balanced image mixture of the curriculum."""
    source = {"world": "train"}
    tasks = [
        {"task": "caption", "source": source},
        {"task": "vqa", "share": 2, "source": source},
        {"task": "grounding", "source": source},
        {"task": "entailment", "source": source},
    ]
    stage = {
        "name": options.size,
        "steps": options.steps + WARM_UP,
        "groups": [{"rows": options.rows, "tasks": tasks}],
        "optim": {"lr": 1e-4, "schedule": "constant"},
        "freeze_batchnorm": True,
    }
    run = {"out": str(out), "stages": [stage], "precision": options.precision, "threads": options.threads}
    return RunConfig.model_validate(run | {"workers": 0, "checkpoint_every": 10**6})


def build(size: str) -> tuple[UnivalForConditionalGeneration, UnivalProcessor]:
    """Return the model that ships, or a full-size one with random weights and the same words."""
    model, processor = load_model("unival-tiny")
    if size == "tiny":
        return model, processor
    torch.manual_seed(0)
    sizes = {name: getattr(model.config, name) for name in ("vocab_size", "num_codes", "num_bins")}
    processor.image_px = 384
    with quiet_transformers():
        return UnivalForConditionalGeneration(UnivalConfig(**sizes, **BASE)), processor


def ours(config: RunConfig, model: Any, processor: Any, batches: list[list[Batch]], timers: Timers) -> None:
    """Run the stage by the loop of `unival train`, with its batches replaced by those collated before."""
    loop_module.iterate = lambda *_, **__: iter(batches)
    run_dir = Path(config.out)
    run_dir.mkdir(parents=True)
    log = MetricsLog(run_dir / "metrics.jsonl")
    loop = loop_module.StageLoop(config, 0, model, processor, run_dir, 0, log, World(), {})
    loop.end = lambda: None  # the checkpoint at the end is no part of a step
    step = loop.step

    def timed_step(number: int, parts: Any) -> dict[str, float]:
        timers.begin_step()
        numbers = step(number, parts)
        timers.end_step()
        return numbers

    loop.step = timed_step
    loop.losses.forward = timers.timed(loop.losses.forward)
    loop.optimizer.step = timers.timed(loop.optimizer.step)
    loop_module.clip_gradients = timers.timed(loop_module.clip_gradients)
    torch.Tensor.backward = timers.timed(torch.Tensor.backward)
    loop.run(TrainState(stage=0, step=0, seconds=0.0))


def plain(config: RunConfig, model: Any, processor: Any, batches: list[list[Batch]], timers: Timers) -> None:
    """Train as one does it by hand, float32 and eager."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    forward = timers.timed(model.forward)
    backward = timers.timed(torch.Tensor.backward)
    clip, update = timers.timed(torch.nn.utils.clip_grad_norm_), timers.timed(optimizer.step)
    set_mode(model)
    for (batch,) in batches:
        timers.begin_step()
        backward(forward(**batch.inputs, labels=batch.target).loss)
        clip(model.parameters(), 1.0)
        update()
        optimizer.zero_grad()
        timers.end_step()


def trainer(config: RunConfig, model: Any, processor: Any, batches: list[list[Batch]], timers: Timers) -> None:
    """Train by `transformers.Trainer`; a sample of its data set is a whole batch."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            timers.begin_step()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            timers.end_step()

    arguments = TrainingArguments(
        output_dir=str(Path(config.out) / "trainer"),
        max_steps=len(batches),
        per_device_train_batch_size=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=config.precision == "bf16",
        use_cpu=True,
        logging_steps=config.log_every,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    data: Any = [{**batch.inputs, "labels": batch.target} for (batch,) in batches]
    run = Trainer(model, arguments, train_dataset=data, data_collator=lambda samples: samples[0], callbacks=[Steps()])
    set_mode(model)
    model.train = lambda *_: model  # Trainer would put batch norm in training mode at every step
    model.forward = timers.timed(model.forward)
    torch.Tensor.backward = timers.timed(torch.Tensor.backward)
    torch.nn.utils.clip_grad_norm_ = timers.timed(torch.nn.utils.clip_grad_norm_)
    torch.optim.AdamW.step = timers.timed(torch.optim.AdamW.step)
    run.train()


def set_mode(model: torch.nn.Module) -> None:
    """Put a model in training mode and its batch norms in evaluation mode, as the stage says."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()


def worker(side: str, options: argparse.Namespace) -> None:
    """Run one side in this process and print what it took."""
    torch.set_num_threads(options.threads)
    if side == "ours":
        keep_freed_memory()  # as `unival train` does
    with tempfile.TemporaryDirectory() as folder:
        config = settings(options, Path(folder) / "run")
        model, processor = build(options.size)
        stage = StageBatches(config.stages[0], processor, seed=1)
        batches = [stage[0]] * WARM_UP + [stage[step] for step in range(options.steps)]
        timers = Timers()
        {"ours": ours, "plain": plain, "trainer": trainer}[side](config, model, processor, batches, timers)
    print(json.dumps(timers.result()))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every side `--repeats` times in turn; return the best of each and the ratios."""
    has_trainer = importlib.util.find_spec("accelerate") is not None
    sides = [side for side in SIDES if side != "trainer" or has_trainer]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            runs[side].append(in_process(side, options))
    best = {side: {key: min(run[key] for run in found) for key in found[0]} for side, found in runs.items()}
    return {
        "size": options.size,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        **{key: getattr(options, key) for key in ("threads", "rows", "steps", "repeats", "precision")},
        "sides": best,
        "ratios": {side: best[side]["cpu"] / best["ours"]["cpu"] for side in sides},
        "missing": None if has_trainer else "Trainer: accelerate is not installed (extra `adapters`)",
    }


def in_process(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Run `worker` in a process of its own; return what it measured."""
    flags = [f"--{key}={getattr(options, key)}" for key in ("size", "rows", "steps", "threads", "precision")]
    command = [sys.executable, __file__, "--worker", side, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def lines(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table."""
    for side, found in result["sides"].items():
        yield (
            side,
            f"{1 / found['wall']:.2f}",
            f"{found['cpu']:.3f}",
            f"{result['ratios'][side]:.2f}",
            f"{found['peak'] / 1e9:.2f}",
            f"{found['overhead']:.1%}",
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--rows", type=int, default=8, help="pictures per step, five examples each")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each side")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side, in turn; the best counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of ours and Trainer's")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options)
        return
    result = measure(options)
    print(json.dumps(result))
    if options.json:
        return
    table = Table("side", "steps/s", "CPU s/step", "CPU, times ours", "peak GB", "outside model and optimizer")
    for line in lines(result):
        table.add_row(*line)
    Console().print(table)
    overhead = result["sides"]["ours"]["overhead"]
    verdict = "met" if overhead <= TARGETS["overhead"] else "missed"
    Console().print(f"loop overhead {overhead:.1%}, target at most {TARGETS['overhead']:.0%}: {verdict}")


if __name__ == "__main__":
    main()
