"""The one training loop: `unival train CONFIG [key=value ...]`, or `python -m unival.train CONFIG`.

Reading order: start or resume, stages, steps, evaluation. A stage builds its model (with the encoders that join), its
optimiser and its stream; a step asks the stream for the batches of its number, sums the losses of the groups and
updates. What is minimised is the stage's objective.
"""

import inspect
import json
import platform
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unival import __version__
from unival.checkpoint import (
    TrainState,
    load_bart,
    load_encoder,
    load_model,
    load_training,
    newest_valid,
    quiet_transformers,
    read_state,
    resolve_model_dir,
    restore_generator,
    save_model,
    save_training,
)
from unival.config import dump_config, load_config
from unival.data.mixture import Stream, iterate
from unival.errors import UserError, did_you_mean
from unival.evaluate import evaluate_all
from unival.log import MetricsLog, console, progress
from unival.model.audio import PannCNN
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import load_bpe_tokenizer, train_tokenizer
from unival.model.video import ResNeXt3D
from unival.objectives.base import Objective, get_objective
from unival.optim import build_optimizer, freeze, learning_rate, set_train_mode
from unival.schema import EncoderName, RunConfig, StageConfig

NUM_TOKENIZER_ROWS = 500
NUM_STATISTICS_ROWS = 1000


class Interrupted(Exception):
    """The run was asked to stop; its state is on disk."""


def train(config: RunConfig, fresh: bool = False) -> Path:
    """Run all stages and evaluations; return the folder of the final model.

    The same call on the same run folder continues where the last one stopped, and does nothing when it was complete.

    Raises:
        UserError: If the run folder belongs to another configuration.
        Interrupted: After SIGINT or SIGTERM, with a checkpoint written.
    """
    run_dir = Path(config.out)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    prepare_run_dir(run_dir, config, fresh)
    if not (run_dir / "model" / "model.safetensors").is_file():
        run_stages(config, run_dir)
    if config.evaluations and not (run_dir / "evaluation.json").is_file():
        model, processor = load_model(run_dir / "model")
        evaluate_all(model, processor, config.evaluations, run_dir)
    return run_dir / "model"


def run_stages(config: RunConfig, run_dir: Path) -> None:
    """Train every stage from the newest valid checkpoint on and write `model/`."""
    torch.manual_seed(config.seed)
    checkpoint, skipped = newest_valid(run_dir)
    for line in skipped:
        console.print(f"[yellow]{line}[/]")
    if checkpoint is None:
        state = TrainState(stage=0, step=0, seconds=0.0)
        model, processor = start(config)
    else:
        state = read_state(checkpoint)
        model, processor = load_model(checkpoint / "model")
        restore_generator(checkpoint)  # encoders that join at the next stage are drawn from it
        console.print(f"resuming {run_dir} at stage {state.stage + 1}, step {state.step} ({checkpoint.name})")
    steps_before = np.concatenate([[0], np.cumsum([stage.steps for stage in config.stages])])
    log = MetricsLog(run_dir / "metrics.jsonl", int(steps_before[state.stage]) + state.step)
    for index in range(state.stage, len(config.stages)):
        stage = config.stages[index]
        if state.step == 0:
            model = add_encoders(model, stage, config.encoder_weights)
        loop = StageLoop(config, index, model, processor, run_dir, int(steps_before[index]), log)
        if checkpoint is not None and state.step > 0:
            load_training(checkpoint, loop.optimizer)
        loop.run(state)
        state, checkpoint = TrainState(index + 1, 0, loop.seconds), None
    save_model(run_dir / "model", model.eval(), processor)


class StageLoop:
    """The steps of one stage."""

    def __init__(
        self,
        config: RunConfig,
        index: int,
        model: UnivalForConditionalGeneration,
        processor: UnivalProcessor,
        run_dir: Path,
        steps_before: int,
        log: MetricsLog,
    ) -> None:
        self.config, self.index, self.stage = config, index, config.stages[index]
        self.model, self.processor, self.run_dir = model, processor, run_dir
        self.steps_before, self.log = steps_before, log
        freeze(model, self.stage)
        self.optimizer = build_optimizer(model, self.stage.optim)
        objective = self.stage.objective
        self.objective: Objective = get_objective(objective.name, objective.args, processor, self.rows)
        self.autocast = uses_bf16(config.precision)
        self.seconds = 0.0

    def run(self, state: TrainState) -> None:
        """Run the steps from `state.step` on, with checkpoints on the way."""
        self.seconds = state.seconds
        stage, start_time = self.stage, time.monotonic() - state.seconds
        batches = iterate(stage, self.processor, self.config.seed, state.step, self.config.workers)
        sums, counts = defaultdict(float), defaultdict(int)
        with StopSignal() as stop, progress() as bar:
            row = bar.add_task(stage.name, total=stage.steps, completed=state.step, status="")
            for step in range(state.step, stage.steps):
                for name, number in self.step(step, next(batches)).items():
                    sums[name] += number
                    counts[name] += 1
                self.seconds = time.monotonic() - start_time
                total = self.steps_before + step + 1
                if (step + 1) % self.config.log_every == 0 or step + 1 == stage.steps:
                    means = {name: sums[name] / counts[name] for name in sums}
                    self.log.write(total - 1, stage=stage.name, seconds=round(self.seconds, 2), **means)
                    bar.update(row, status=" ".join(f"{k.removeprefix('loss/')} {v:.2f}" for k, v in shown(means)))
                    sums.clear()
                    counts.clear()
                bar.advance(row)
                if stop.requested or ((step + 1) % self.config.checkpoint_every == 0 and step + 1 < stage.steps):
                    self.save(total, step + 1)
                if stop.requested:
                    raise Interrupted(f"stopped at step {total}; the same command continues")
        self.save(self.steps_before + stage.steps, stage.steps)

    def rows(self) -> list[Mapping[str, Any]]:
        """Return records of the first task of the stage, from the head of its stream."""
        stream = Stream(self.stage.groups[0].tasks[0], self.config.seed)
        return [stream.example(i, 0).record for i in range(min(NUM_STATISTICS_ROWS, stream.num_media))]

    def step(self, step: int, batches: Sequence[Any]) -> dict[str, float]:
        """Make one update from one batch per group; groups have equal weight."""
        optim = self.stage.optim
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, self.stage.steps) * group["scale"]
        set_train_mode(self.model, self.stage)
        logs: dict[str, float] = {}
        for batch in batches:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
                loss = self.objective(self.model, batch, step)
            (loss.value / len(batches)).backward()
            logs |= {"loss": logs.get("loss", 0.0) + loss.value.item() / len(batches)} | loss.logs
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, optim.clip_norm).item()
        if not np.isfinite(norm):
            raise FloatingPointError(f"gradient norm is {norm} at step {step} of stage {self.stage.name}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return logs | {"grad_norm": norm, "lr": self.optimizer.param_groups[-1]["lr"]}

    def save(self, total: int, step: int) -> None:
        """Write a training checkpoint that says which step comes next."""
        is_last = step == self.stage.steps
        state = TrainState(self.index + is_last, 0 if is_last else step, self.seconds)
        keep = self.config.keep_checkpoints
        save_training(self.run_dir, total, state, self.model, self.processor, self.optimizer, keep)


class StopSignal:
    """Turn SIGINT and SIGTERM into a request to stop after the current step; a second one stops at once."""

    def __enter__(self) -> "StopSignal":
        self.requested = False
        self.previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def start(config: RunConfig) -> tuple[UnivalForConditionalGeneration, UnivalProcessor]:
    """Load the initial model, or make one from scratch with its own tokenizer."""
    if config.init is not None:
        model, processor = load_model(config.init)
        if config.model:
            model = rebuild(model, config.model)
        return model, processor
    check_options(config.model, UnivalConfig().to_dict().keys() - {"vocab_size", "num_codes", "num_bins"})
    refuse_unknown("processor", config.processor, list(inspect.signature(UnivalProcessor).parameters)[2:])
    options = config.tokenizer
    if options.path is not None:
        old = UnivalProcessor.from_pretrained(resolve_model_dir(options.path), local_files_only=True)
        tokenizer, num_bins = old.tokenizer, old.num_bins
        num_codes = sum(token.startswith("<code_") for token in tokenizer.get_vocab())
    else:
        num_codes, num_bins = options.num_codes, options.num_bins
        if options.bpe is not None:
            tokenizer = load_bpe_tokenizer(options.bpe, num_codes, num_bins)
        else:
            tokenizer = train_tokenizer(corpus(config), options.num_words, num_codes, num_bins)
    processor = UnivalProcessor(tokenizer, num_bins=num_bins, **config.processor)
    sizes = {"vocab_size": len(tokenizer), "num_codes": num_codes, "num_bins": num_bins}
    model = UnivalForConditionalGeneration(UnivalConfig(**sizes, **config.model))
    if config.bart_weights is not None:
        load_bart(model, config.bart_weights)
    for name in config.encoder_weights.keys() & config.model.keys():
        load_encoder(model, name, config.encoder_weights[name])
    return model, processor


def corpus(config: RunConfig) -> list[str]:
    """Return the prompts and targets of the first rows of every task, to learn a vocabulary from."""
    entries = [entry for stage in config.stages for group in stage.groups for entry in group.tasks]
    texts = []
    for stream in (Stream(entry, config.seed) for entry in entries):
        examples = (stream.example(i, 0) for i in range(min(NUM_TOKENIZER_ROWS, stream.num_media)))
        texts += [text for example in examples for text in (example.prompt, example.target)]
        texts += getattr(stream.source, "vocabulary", [])
    return texts


def add_encoders(
    model: UnivalForConditionalGeneration, stage: StageConfig, weights: Mapping[EncoderName, str]
) -> UnivalForConditionalGeneration:
    """Return a model with the encoders that join at a stage, from `weights` where given; all else is kept."""
    for name in stage.add:
        if name not in ("image_encoder", "video_encoder", "audio_encoder"):
            raise UserError(f"add: {name!r} is not an encoder", fix="image_encoder, video_encoder or audio_encoder")
    if stage.add:
        model = rebuild(model, stage.add)
    for name, path in weights.items():
        if name in stage.add:
            load_encoder(model, name, path)
    return model


def rebuild(model: UnivalForConditionalGeneration, changes: dict[str, Any]) -> UnivalForConditionalGeneration:
    """Return a model with changed configuration fields and the same weights; only new encoders start fresh.

    Raises:
        UserError: If the changes touch the shape of an existing weight.
    """
    settings = model.config.to_dict()
    check_options(changes, settings)
    with quiet_transformers():
        new = UnivalForConditionalGeneration(UnivalConfig.from_dict(settings | changes))
    state, wanted = model.state_dict(), new.state_dict()
    changed = [name for name, tensor in state.items() if name not in wanted or wanted[name].shape != tensor.shape]
    if changed:
        raise UserError(f"these model options change the shape of {len(changed)} weights", where=", ".join(changed[:5]))
    new.load_state_dict(state, strict=False)
    return new


def check_options(options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse options that a model or its encoders do not have; `transformers` would keep them without a word.

    Raises:
        UserError: If one is unknown.
    """
    refuse_unknown("model", options, known)
    for name, encoder in (("video_encoder", ResNeXt3D), ("audio_encoder", PannCNN)):
        refuse_unknown(name, options.get(name) or {}, inspect.signature(encoder).parameters)


def refuse_unknown(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise a `UserError` for the first option that is not known."""
    known = list(known)
    for name in options:
        if name not in known:
            raise UserError(f"unknown {what} option {name!r}", fix=did_you_mean(name, known))


def uses_bf16(precision: str) -> bool:
    """Decide on bf16 autocast: `auto` only where the processor multiplies bf16 matrices in hardware."""
    if precision != "auto":
        return precision == "bf16"
    capability = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capability or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def prepare_run_dir(run_dir: Path, config: RunConfig, fresh: bool) -> None:
    """Create the run folder with the resolved configuration, or check that it holds the same one."""
    path = run_dir / "config.yaml"
    if path.is_file() and not fresh:
        if load_config(path, [], RunConfig) != config:
            raise UserError(
                "the run folder holds a run with another configuration",
                where=str(path),
                fix="choose another `out=...`, or start over with --fresh",
            )
        return
    if run_dir.is_dir() and fresh:
        import shutil

        shutil.rmtree(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    dump_config(config, path)
    (run_dir / "versions.json").write_text(json.dumps(versions(), indent=1), encoding="utf-8")


def versions() -> dict[str, str]:
    """Return what numbers depend on: library versions, Python, processor."""
    import transformers

    return {
        "unival": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
    }


def shown(means: dict[str, float]) -> list[tuple[str, float]]:
    """Return what fits in the progress line: per-task losses or rewards."""
    return [(k, v) for k, v in means.items() if k.startswith(("loss/", "reward"))][:6]


def main(config_path: str, overrides: Sequence[str] = (), fresh: bool = False) -> Path:
    """Load a configuration and train."""
    return train(load_config(config_path, list(overrides), RunConfig), fresh)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
