"""The one training loop: `unival train CONFIG [key=value ...]`, or `torchrun ... -m unival.train CONFIG ...`.

Reading order: start or resume, stages, steps, evaluation. A stage builds its model (with the encoders that join), its
optimiser and its stream; a step asks the stream for the batches of its number, sums the losses of the groups and
updates. What is minimised is the stage's objective. Every process runs this file; the main one writes.
"""

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from unival.batch import Batch
from unival.checkpoint import atomic_folder, load_model, save_model, write_model
from unival.config import load_config
from unival.data.mixture import RowSlice, Stream, iterate, rows_of_files, with_steps
from unival.errors import UserError, run_cli
from unival.evaluate import evaluate_all
from unival.log import Means, Meter, MetricsLog, console, cut_back, progress
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives.base import Objective, get_objective
from unival.schema import RunConfig
from unival.training.building import add_encoders, start
from unival.training.distributed import World, average_statistics, copy_full, full_state, join, sync_gradients, wrap
from unival.training.doubts import doubts
from unival.training.ema import Ema, untied
from unival.training.losses import Losses, autocast, autocast_dtype, sizes_ahead
from unival.training.memory import warn_if_too_large
from unival.training.optim import LossScale, build_optimizer, clip_gradients, freeze, learning_rate, set_train_mode
from unival.training.random_state import load_random, seed_process
from unival.training.run_folder import check_data, find_checkpoint, prepare_run_dir
from unival.training.saving import TrainState, load_moments, read_state, save_training, written
from unival.training.stop import STOP, Interrupted, StopSignal, ignored, interruptible
from unival.training.validation import (
    Halted,
    Watch,
    drop_others,
    intact_models,
    plain_copy,
    problem_with_best,
    save_best,
    show_samples,
    validate,
)

NUM_STATISTICS_ROWS = 1000


def train(config: RunConfig, fresh: bool = False) -> Path:
    """Run all stages and evaluations; return the folder of the final model.

    The same call on the same run folder continues where the last one stopped, and does nothing when it was complete.

    Raises:
        UserError: If the run folder belongs to another configuration.
        Interrupted: After SIGINT or SIGTERM, with a checkpoint written.
    """
    run_dir = Path(config.out)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    with ignored(signal.SIGUSR1), ExitStack() as held, join(config.parallel, config.device) as world:
        is_quiet, console.quiet = console.quiet, console.quiet or not world.is_main
        try:
            world.on_main(lambda: prepare_run_dir(run_dir, config, fresh, world.size, held))
            if not world.on_main((run_dir / "model" / "model.safetensors").is_file):
                run_stages(config, run_dir, world)
            if config.evaluations and not world.on_main((run_dir / "evaluation.json").is_file):
                folder = run_dir / ("ema" if config.ema is not None and config.ema.evaluate else "model")
                model, processor = load_model(folder)
                model.to(world.device)  # pyright: ignore[reportArgumentType]
                evaluate_all(model, processor, config.evaluations, run_dir, world, folder)
        finally:
            console.quiet = is_quiet
    return run_dir / "model"


def train_file(path: str | Path, *overrides: str, fresh: bool = False) -> Path:
    """Train as a file says, with overrides such as `seed=2`: `train_file("config.yaml", "out=runs/a")`; see `train`."""
    return train(load_config(path, overrides, RunConfig), fresh)


def run_stages(config: RunConfig, run_dir: Path, world: World) -> None:
    """Train every stage from the newest valid checkpoint on and write `model/`, and `ema/` with averaging."""
    config = with_steps(config)
    checkpoint = world.on_main(lambda: find_checkpoint(config, run_dir))
    seed_process(config.seed, 0)
    averages: Mapping[str, Tensor] = {}
    if checkpoint is None:
        state = TrainState(stage=0, step=0, seconds=0.0)
        model, processor = start(config)
        warn_if_too_large(model, config, world)
        if not world.is_main:
            seed_process(config.seed, world.rank)  # all began alike; from here on each has its own dropout
    else:
        state = read_state(checkpoint)
        check_data(config, state, checkpoint)
        model, processor = load_model(checkpoint / "model")
        restore_random(checkpoint, config, state, world)  # encoders that join at the next stage are drawn from it
        if config.ema is not None and (checkpoint / "ema").is_dir():
            averages = load_file(checkpoint / "ema" / "model.safetensors")
        console.print(f"resuming {run_dir} at stage {state.stage + 1}, step {state.step} ({checkpoint.name})")
    steps_before = np.concatenate([[0], np.cumsum([stage.steps for stage in config.stages])])
    first = int(steps_before[state.stage]) + state.step
    path = run_dir / "metrics.jsonl"
    samples = run_dir / "samples.jsonl"
    if world.is_main and samples.exists():  # they count the steps that were made, rows of the log count from 0
        written(samples.name, run_dir, lambda: cut_back(samples, first + 1))
    log = written(path.name, run_dir, lambda: MetricsLog(path, first, config.tensorboard, world.is_main))
    for index in range(state.stage, len(config.stages)):
        if state.step == 0:
            model = add_encoders(model, config.stages[index], config.encoder_weights)
        loop = StageLoop(config, index, model, processor, run_dir, int(steps_before[index]), log, world, averages)
        if checkpoint is not None and state.step > 0:
            load_moments(checkpoint, loop.model, loop.optimizer)
            restore_random(checkpoint, config, state, world)
        loop.run(state)
        model, averages = loop.finish()
        state, checkpoint = TrainState(index + 1, 0, loop.seconds), None

    def finish() -> None:
        if averages:
            with atomic_folder(run_dir / "ema") as temporary:
                write_model(temporary, model, processor, state=averages)
        save_model(run_dir / "model", model.eval(), processor)

    world.on_main(lambda: written("the final model", run_dir, finish))


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
        world: World,
        averages: Mapping[str, Tensor],
    ) -> None:
        self.config, self.index, self.stage = config, index, config.stages[index]
        self.model, self.processor, self.run_dir = model, processor, run_dir
        self.steps_before, self.log, self.world = steps_before, log, world
        model.to(world.device)  # pyright: ignore[reportArgumentType]
        freeze(model, self.stage)
        for doubt in doubts(config, index, model):
            console.print(f"[yellow]stage {self.stage.name}: {doubt}[/]")
        objective = self.stage.objective
        self.objective: Objective = get_objective(objective.name, objective.args, processor, self.rows)
        self.losses = self.parallel()
        self.optimizer = build_optimizer(model, self.stage.optim)
        self.ema = None if config.ema is None else Ema(model, config.ema, averages)
        self.dtype = autocast_dtype(config.precision, world.device)
        self.scale, self.watch = LossScale(), Watch(self.stage.validation, {})
        self.means, self.meter, self.num_rows = Means(), Meter(), rows_of_files(self.stage)
        self.seconds, self.wants_checkpoint, self.stopped_by = 0.0, False, 0

    def parallel(self) -> torch.nn.Module:
        """Return the losses of a step as a module that averages gradients over the processes."""
        model, config = self.model, self.config
        if config.checkpoint_activations:
            model.activation_checkpointing_enable({"use_reentrant": False})
        layers = [*model.encoder.layers, *model.decoder.layers]
        for layer in layers if config.compile else ():
            layer.compile(dynamic=True)
        samples = hasattr(self.objective, "draw")
        if samples and self.world.kind == "fsdp" and config.parallel.reshard:
            raise UserError("FSDP2 cannot give up layers while an objective samples", fix="parallel.reshard=false")
        return wrap(Losses(model, self.objective, samples), layers, self.world, config.parallel)

    def run(self, state: TrainState) -> None:
        """Run the steps from `state.step` on, with validations and checkpoints on the way."""
        config, stage, world = self.config, self.stage, self.world
        optim = stage.optim
        fp16 = {"value": optim.loss_scale, "window": optim.loss_scale_window} if self.dtype == torch.float16 else {}
        known = [name for _, name in state.watch.get("best", [])]
        stored = world.on_main(lambda: intact_models(self.run_dir / "best", known))
        self.scale, self.watch = LossScale(**(fp16 | dict(state.scale))), Watch(stage.validation, state.watch, stored)
        start_time = time.monotonic() - state.seconds
        rows = RowSlice(world.rank, world.size, config.accumulation)
        passes = iterate(stage, self.processor, config.seed, state.step, config.workers, rows)
        with StopSignal() as self.stop, progress(world.is_main) as bar:
            row = bar.add_task(stage.name, total=stage.steps, completed=state.step, status="")
            if state.validating:
                self.validate(state.step, go_on=True)
            for step in () if self.watch.is_over else range(state.step, stage.steps):
                with self.meter.waiting():
                    parts = [[batch.to(world.device) for batch in next(passes)] for _ in range(config.accumulation)]
                self.means.add(self.step(step, parts))
                self.seconds = time.monotonic() - start_time
                total, is_last = self.steps_before + step + 1, step + 1 == stage.steps
                if (step + 1) % config.log_every == 0 or is_last:
                    bar.update(row, status=self.write_log(total - 1))
                bar.advance(row)
                with self.meter.paused():
                    if config.show_every is not None and (step + 1) % config.show_every == 0:
                        self.show(total, parts[0])
                    if stage.validation is not None and (stage.validation.is_due(step + 1) or is_last):
                        self.validate(step + 1)
                if is_last or self.watch.is_over:
                    break
                if (step + 1) % config.checkpoint_every == 0 or self.wants_checkpoint or self.stopped_by:
                    with self.meter.paused():
                        self.save(total, step + 1)
                self.stop_if_asked(total)
            self.end()
            self.agree([])
            self.stop_if_asked(self.steps_before + stage.steps)

    def step(self, step: int, parts: Sequence[Sequence[Batch]]) -> dict[str, float]:
        """Make one update from the passes of this process, each one batch per group; groups have equal weight.

        The gradient is that of the sum of the groups' losses, as in the original; `loss` in the log is their mean.
        """
        optim, world = self.stage.optim, self.world
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, self.stage.steps) * group["scale"]
        set_train_mode(self.model, self.stage)
        sizes = self.agree(sizes_ahead(self.objective, parts, step)) if len(parts) > 1 else None
        means, value = Means(), 0.0
        for number, batches in enumerate(parts):
            sync_gradients(self.losses, number + 1 == len(parts))
            with autocast(world, self.dtype):
                values, own, logs = self.losses(batches, step)
            sizes = self.agree(own) if sizes is None else sizes
            # The backward pass averages over processes, which the sum of sizes has done already.
            shares = [world.size * size / total for size, total in zip(own, sizes, strict=True)]
            loss = torch.stack([loss * share for loss, share in zip(values, shares, strict=True)]).sum()
            (loss * self.scale.value).backward()
            value += loss.item() / len(batches)
            for entries in logs:
                means.add(entries)
            self.meter.examples += sum(len(batch.examples) for batch in batches)
        norm = clip_gradients(self.model.parameters(), optim.clip_norm, self.scale.value)
        try:
            self.scale.update(is_finite=bool(np.isfinite(norm)))
        except FloatingPointError:
            what = f"training diverged: the gradient norm is {norm} at step {step} of stage {self.stage.name}"
            raise UserError(what, str(self.run_dir), "lower `optim.lr`, warm up longer, or look at the data") from None
        if np.isfinite(norm):
            self.optimizer.step()
            average_statistics(self.model, world)
            if self.ema is not None:
                self.ema.update(self.model, self.steps_before + step)
        else:
            what = f"step {self.steps_before + step + 1}: no update, the gradient norm is {norm}"
            console.print(f"[yellow]{what}; the loss is scaled by {self.scale.value:g} from here on[/]")
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": value} | means.take() | {"grad_norm": norm, "lr": self.optimizer.param_groups[-1]["lr"]}

    def rows(self) -> list[Mapping[str, Any]]:
        """Return records of the first task of the stage, from the head of its stream."""
        stream = Stream(self.stage.groups[0].tasks[0], self.config.seed)
        return [stream.example(i, 0).record for i in range(min(NUM_STATISTICS_ROWS, stream.num_media))]

    def agree(self, sizes: Sequence[float]) -> list[float]:
        """Return the sums of sizes over all processes, and learn with them which signals came to any process."""
        wants, self.stop.wants_checkpoint = self.stop.wants_checkpoint, False
        *sums, wants, interrupted, terminated = self.world.sum([*sizes, wants, *(self.stop.number == n for n in STOP)])
        self.wants_checkpoint = wants > 0
        self.stopped_by = STOP[0] if interrupted else STOP[1] if terminated else 0
        return sums

    def stop_if_asked(self, total: int) -> None:
        """Leave the run where a signal asked for it."""
        if self.stopped_by:
            raise Interrupted(f"stopped at step {total}; the same command continues", self.stopped_by)

    def write_log(self, step: int) -> str:
        """Write the means since the last row; return what fits in the progress line."""
        means, speed = self.means.take(self.world.gather), self.meter.take(self.world.size)
        self.write_row(step, seconds=round(self.seconds, 2), **means, **speed)
        shown = [(k.removeprefix("loss/"), v) for k, v in means.items() if k.startswith(("loss/", "reward"))][:6]
        rates = f"{speed['samples_per_second']:.0f}/s {speed['memory_gb']:.1f} GB"
        return " ".join([*(f"{name} {value:.2f}" for name, value in shown), rates])

    def write_row(self, step: int, **numbers: float) -> None:
        """Append a row to `metrics.jsonl`."""
        written(self.log.path.name, self.run_dir, lambda: self.log.write(step, stage=self.stage.name, **numbers))

    def validate(self, step: int, go_on: bool = False) -> None:
        """Score the model after `step` steps, and keep it if it is one of the best.

        A signal halts the scoring: a checkpoint is written, and if the run is not to stop, the scoring goes on.
        """
        config, validation, total = self.config, self.stage.validation, self.steps_before + step
        assert validation is not None
        averages = None if self.ema is None else self.ema.tensors
        is_averaged = averages is not None and config.ema is not None and config.ema.evaluate
        judged = plain_copy(self.model, averages if averages and is_averaged else untied(self.model), self.world)
        parts = judged, self.processor, validation.evaluations, self.run_dir / f".validation-{total}", self.world
        scores = None
        while scores is None:
            try:
                scores = validate(*parts, self.stop, go_on)
            except Halted:
                self.save(total, step, validating=True)
                self.agree([])
                self.stop_if_asked(total)
                go_on = True
        self.write_row(total - 1, **{f"validation/{k}": v for k, v in scores.items()})
        console.print(f"step {total}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        name = f"{self.stage.name}-step-{total:07d}"
        if self.watch.take(scores, name):
            states = {"model": full_state(untied(self.model), self.world)}
            if averages is not None:
                states["ema"] = full_state(averages, self.world)
            kept = self.run_dir / "best", self.watch, name, states, self.model, self.processor
            self.world.on_main(lambda: written(f"best/{name}", self.run_dir, lambda: save_best(*kept)))
        if self.watch.is_over:
            console.print(f"{self.stage.name} ends here: {self.watch.since_best} validations without a new best")

    def show(self, total: int, batches: Sequence[Batch]) -> None:
        """Print what the model writes for some examples of this step."""
        plain = plain_copy(self.model, untied(self.model), self.world)
        if self.world.is_main:
            path = self.run_dir / "samples.jsonl"
            show_samples(plain, self.processor, self.stage.groups, batches, self.config.show, path, total)

    def save(self, total: int, step: int | None, validating: bool = False) -> None:
        """Write a training checkpoint that says which step comes next; None is the first of the next stage."""
        stage, step = (self.index + 1, 0) if step is None else (self.index, step)
        is_over = step == 0
        state = TrainState(
            stage,
            step,
            self.seconds,
            scale={} if is_over else asdict(self.scale),
            watch={} if is_over else self.watch.state(),
            world={"processes": self.world.size, "kind": self.world.kind, "accumulation": self.config.accumulation},
            validating=validating,
            rows={} if is_over else self.num_rows,
        )
        parts = self.model, self.processor, self.optimizer, self.config.keep_checkpoints, self.ema, self.world
        save_training(self.run_dir, total, state, *parts)
        self.watch.safe = {name for _, name in self.watch.best}
        if self.world.is_main:
            drop_others(self.run_dir / "best", self.stage.name, self.watch)

    def end(self) -> None:
        """Take the best weights where the stage asks for them, and write its last checkpoint."""
        validation = self.stage.validation
        if validation is not None and validation.restore_best:
            folder = self.run_dir / "best" / (self.watch.best[0][1] if self.watch.best else "")
            problem = self.world.on_main(lambda: problem_with_best(folder) if self.watch.best else "none is left")
            if problem is not None:
                fix = "the same command goes on from the last checkpoint, without this model; or restore_best: false"
                raise UserError(f"the best model cannot be taken: {problem}", str(folder), fix)
            copy_full(untied(self.model), load_file(folder / "model" / "model.safetensors"))
            if self.ema is not None:
                copy_full(self.ema.tensors, load_file(folder / "ema" / "model.safetensors"))
        self.save(self.steps_before + self.stage.steps, None)

    def finish(self) -> tuple[UnivalForConditionalGeneration, Mapping[str, Tensor]]:
        """Return the model as a module of its own, and the whole averages."""
        averages = {} if self.ema is None else full_state(self.ema.tensors, self.world, everywhere=True)
        if self.world.kind == "none":
            return self.model, averages
        return plain_copy(self.model, untied(self.model), self.world), averages


def restore_random(checkpoint: Path, config: RunConfig, state: TrainState, world: World) -> None:
    """Restore this process's generators; with more processes than before, the new ones are seeded."""
    path = checkpoint / f"random-{world.rank:05d}.safetensors"
    if path.is_file():
        load_random(path, world.device)
    else:
        seed_process(config.seed, world.rank, state.stage * 10**9 + state.step)


def main(args: Sequence[str]) -> None:
    """Train from a command line `CONFIG [key=value ...] [--fresh]`; `unival train` in one of several processes."""
    given = [argument for argument in args if argument != "--fresh"]
    if not given:
        raise UserError("which configuration?", fix="python -m unival.train CONFIG [key=value ...]")
    with interruptible():
        train_file(given[0], *given[1:], fresh="--fresh" in args)


if __name__ == "__main__":
    run_cli(lambda args: main(args))
