"""What a run looks at on the way: scores on held-out rows, the best models so far, and what the model writes."""

import copy
import json
import shutil
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unival.atomic import append
from unival.batch import Batch
from unival.checkpoint import atomic_folder, quiet_transformers, write_model
from unival.data.mixture import for_group
from unival.errors import UserError, did_you_mean
from unival.evaluate import run_evaluation
from unival.evaluation.answering import generate
from unival.evaluation.predictions import PredictionStore, Row
from unival.log import console
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.schema import EvaluationConfig, GroupConfig, ValidationConfig
from unival.tasks.base import get_task
from unival.training.distributed import World, full_state
from unival.training.saving import MANIFEST, problem_with, write_manifest, written
from unival.training.stop import StopSignal


def plain_copy(
    model: UnivalForConditionalGeneration, tensors: Mapping[str, Tensor], world: World
) -> UnivalForConditionalGeneration:
    """Return a model of its own, whole in every process and in evaluation mode; no random number is drawn.

    Generation calls layers as often as an answer is long, which is not the same in all processes: parts that FSDP2
    gathers together cannot do that.

    Args:
        model: Gives the configuration.
        tensors: Its weights or their averages; processes may hold parts of them.
        world: Of the run.
    """
    state = full_state(tensors, world, everywhere=True)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        plain = UnivalForConditionalGeneration(copy.deepcopy(model.config))
    plain.load_state_dict(state, strict=False)  # of tied weights there is one
    return plain.to(world.device).eval()  # pyright: ignore[reportArgumentType]


class Halted(Exception):
    """A signal came to some process during a validation, whose finished rows are kept."""


class HaltingStore(PredictionStore):
    """Finished rows of a validation that a signal halts, in all processes at the same place.

    Args:
        folder: See `PredictionStore`.
        world: Likewise.
        stop: The signals of this process.
    """

    def __init__(self, folder: Path, world: World, stop: StopSignal) -> None:
        super().__init__(folder, world)
        self.stop = stop

    def append(self, rows: Iterable[Row]) -> None:
        """Write finished rows; with a signal, go where the others come to when their share is done."""
        super().append(rows)
        if self.stop.is_asked:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes are here; raise Halted in all of them if a signal came to any."""
        if any(self.world.gather(self.stop.is_asked)):
            raise Halted


def validate(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    configs: Sequence[EvaluationConfig],
    folder: Path,
    world: World,
    stop: StopSignal,
    go_on: bool = False,
) -> dict[str, float]:
    """Return the mean of every metric as `EVALUATION/METRIC`; the processes share the rows.

    Args:
        model, processor, configs: What to evaluate how.
        folder: For finished rows, emptied at the end.
        world: The processes.
        stop: What halts the validation.
        go_on: Use the rows of a halted validation of the same weights.

    Raises:
        Halted: A signal came; the rows so far are in the folder.
    """
    found: dict[str, float] = {}
    if not go_on:
        world.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        for number, config in enumerate(configs):
            store = HaltingStore(folder / f"{number:03d}", world, stop)
            result = run_evaluation(model, processor, config, store)
            found |= {f"{config.name}/{name}": float(values.mean()) for name, values in result.scores.items()}
            found |= {f"{config.name}/{name}": float(value) for name, value in result.corpus.items()}
        world.gather(None)  # everybody has read the rows
        world.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
    return found


class Watch:
    """The best values of the monitored metric in a stage, and how many validations ago the last one was.

    Args:
        config: What is watched.
        state: What `state` returned, when the run goes on.
        stored: Names of the intact models; others are forgotten, as after a start from a checkpoint of another run.

    Attributes:
        best: Scores and names, the best first.
        safe: Names that the last checkpoint knows: a run that is killed goes on from there, and needs their models.
    """

    def __init__(
        self, config: ValidationConfig | None, state: Mapping[str, Any], stored: Iterable[str] | None = None
    ) -> None:
        self.config = config
        known = [(score, name) for score, name in state.get("best", [])]
        self.best: list[tuple[float, str]] = [item for item in known if stored is None or item[1] in set(stored)]
        self.safe = {name for _, name in self.best}
        self.since_best: int = state.get("since_best", 0)
        self.patience = None if config is None else config.patience

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"best": self.best, "since_best": self.since_best}

    def take(self, scores: Mapping[str, float], name: str) -> bool:
        """Note a validation; return whether its model is among the best, which then has this name.

        Raises:
            UserError: If the monitored metric was not measured.
        """
        if self.config is None or self.config.monitor is None:
            return False
        monitor = self.config.monitor
        if monitor not in scores:
            raise UserError(f"monitor: there is no metric {monitor!r}", fix=did_you_mean(monitor, scores))
        sign = 1.0 if self.config.mode == "max" else -1.0
        before = self.best[0] if self.best else None
        ranked = sorted([*self.best, (scores[monitor], name)], key=lambda item: -sign * item[0])  # ties: the older one
        self.best = ranked[: self.config.keep_best]
        self.since_best = 0 if self.best[0] != before else self.since_best + 1
        return name in [kept for _, kept in self.best]

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        return self.patience is not None and self.since_best >= self.patience


def save_best(
    folder: Path,
    watch: Watch,
    name: str,
    states: Mapping[str, Mapping[str, Tensor]],
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
) -> None:
    """Write `FOLDER/NAME/` with a model folder per state, and delete what the stage no longer needs."""
    scores = {kept: score for score, kept in watch.best}
    with atomic_folder(folder / name) as temporary:
        for kind, state in states.items():
            (temporary / kind).mkdir()
            write_model(temporary / kind, model, processor, state=state)
        (temporary / "score.json").write_text(json.dumps({"name": name, "score": scores[name]}), encoding="utf-8")
        write_manifest(temporary)
    drop_others(folder, name.rpartition("-step-")[0], watch)


def problem_with_best(folder: Path) -> str | None:
    """Return why a best model cannot be used; the first versions wrote no manifest, and theirs is taken as it is."""
    if not folder.is_dir():
        return "it is missing"
    return problem_with(folder) if (folder / MANIFEST).exists() or not (folder / "score.json").is_file() else None


def intact_models(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the names of best models that are there as they were written; say what is wrong with the others."""
    intact = []
    for name in names:
        problem = problem_with_best(folder / name)
        if problem is None:
            intact.append(name)
        else:
            console.print(f"[yellow]skipped best/{name}: {problem}[/]")
    return intact


def drop_others(folder: Path, stage: str, watch: Watch) -> None:
    """Delete the models of a stage that are no longer best, but for those that the last checkpoint knows."""
    kept = watch.safe | {name for _, name in watch.best}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.rpartition("-step-")[0] == stage and path.name not in kept:
            shutil.rmtree(path)


def show_samples(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    groups: Sequence[GroupConfig],
    batches: Sequence[Batch],
    count: int,
    path: Path,
    step: int,
) -> None:
    """Print what the model writes for the first examples of each batch, tasks in turn, and append it to a file."""
    rows = []
    for group, batch in zip(groups, batches, strict=True):
        own = for_group(processor, group)
        for index in first_of_each(batch.entries, count):
            entry, example = group.tasks[batch.entries[index]], batch.examples[index]
            inputs = own.collate([example]).inputs
            with torch.random.fork_rng(devices=[]):
                text = generate(model, processor, get_task(entry.task, entry.task_args), inputs)[0]
            row = {"step": step, "task": entry.task, "uid": example.uid, "prompt": example.prompt}
            rows.append(row | {"target": example.target, "prediction": text})
            console.print(f"{example.prompt} -> {text} (should be: {example.target})", markup=False)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    written(path.name, path.parent, lambda: append(path, text))


def first_of_each(names: Iterable[Hashable], count: int) -> list[int]:
    """Return `count` indices: the first of every name, then the second of every name, and so on."""
    seen: dict[Hashable, int] = {}
    turns = []
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        turns.append((seen[name], index))
    return [index for _, index in sorted(turns)[:count]]
