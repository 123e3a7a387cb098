"""Generate answers for a split, score them, keep every prediction and every per-sample score.

Rows are shared by the processes that `torchrun` starts and kept on disk as they are finished, so that an evaluation
can be killed and continued, with any number of processes (`docs/tasks.md`).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unival.atomic import replacing, write_json
from unival.checkpoint import load_model
from unival.data.source import Source, open_source, row_name
from unival.device import find_device
from unival.errors import UserError, did_you_mean
from unival.evaluation.answering import closed_set, code_options, fixed_draws, generate, hypotheses, search_options
from unival.evaluation.checks import check_suite
from unival.evaluation.loading import Ready, load
from unival.evaluation.predictions import MemoryStore, PredictionStore, Row, text_fields
from unival.evaluation.provenance import PROCESSOR_FIELDS, files_of, settings, split_hash, text_hash, weights_hash
from unival.evaluation.result import Evaluation
from unival.evaluation.submission import write_submission
from unival.log import console, track
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.rewards import REWARDS, Reward, get_reward
from unival.schema import EvaluationConfig, SourceConfig
from unival.tasks.base import Scores, Task, get_task
from unival.training.distributed import World


def evaluate(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    source: Source,
    batch_size: int = 64,
    num_beams: int = 1,
    options: Mapping[str, Any] | None = None,
    description: str = "evaluate",
    store: PredictionStore | None = None,
    rerank: Reward | None = None,
    workers: int = 0,
    max_bad_rows: int = 0,
) -> Evaluation:
    """Evaluate a task on all rows of a source (one row per medium where the source offers several).

    `num_beams` and `options` are those of `generate`. With a `store`, rows that it holds are not predicted again, the
    others are shared by its processes, and every process returns the whole evaluation. A split without any label has
    predictions and no scores. With `rerank`, the hypothesis of the search with the highest reward is the prediction.
    `workers` processes decode media, each of which is killed when one takes too long; `max_bad_rows` media may fail.
    """
    if task.modality != "text" and getattr(model.config, f"{task.modality}_encoder") is None:
        fix = f"give a model with one, or add `{task.modality}_encoder` to its configuration and train it"
        raise UserError(f"this model has no {task.modality} encoder", where=description, fix=fix)
    model.eval()
    store = store or MemoryStore()
    rows, world = store.rows(), store.world
    store.wait()  # everybody has seen the same rows before anybody adds some
    todo = [index for index in range(len(source)) if index not in rows][world.rank :: world.size]
    # The draws of a sample belong to its row, whatever the batch and the process.
    size = 1 if (options or {}).get("sampling") else batch_size
    chunks = [todo[start : start + size] for start in range(0, len(todo), size)]
    loaded = load(processor, task, source, chunks, workers, max_bad_rows)
    is_labelled: bool | None = None
    for ready in track(loaded, description, len(chunks)) if world.is_main else loaded:
        for index, record in zip(ready.indices, ready.records, strict=True):
            is_labelled = task.is_labelled(record) if is_labelled is None else is_labelled
            if task.is_labelled(record) != is_labelled:
                what = (
                    "this row has no label, others have one"
                    if is_labelled
                    else "this row has a label, others have none"
                )
                fix = "complete the rows, or leave out those without a label"
                raise UserError(what, where=row_name(source, index), fix=fix)
        store.append(predict_rows(model, processor, task, ready, num_beams, options, rerank))
    store.wait()
    rows = store.rows()
    missing = [index for index in range(len(source)) if index not in rows]
    if missing:
        fix = "all processes must see one folder"
        raise UserError(f"{len(missing)} of {len(source)} rows have no prediction, such as {missing[0]}", fix=fix)
    records = [rows[index]["record"] for index in range(len(source))]
    predictions = [rows[index]["prediction"] for index in range(len(source))]
    scores: Scores = {} if rerank is None else {"reward": np.array([rows[i]["reward"] for i in range(len(source))])}
    bad = [f"{row_name(source, i)}: {rows[i]['bad']}" for i in range(len(source)) if "bad" in rows[i]]
    if not any(map(task.is_labelled, records)):
        return Evaluation(records, predictions, scores, {}, bad)
    scores |= task.score(predictions, records)
    return Evaluation(records, predictions, scores, task.corpus(predictions, records), bad)


def predict_rows(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    ready: Ready,
    num_beams: int,
    options: Mapping[str, Any] | None,
    rerank: Reward | None = None,
) -> list[Row]:
    """Return the predictions for some rows of a source; for a medium that cannot be decoded, that of no text."""
    found: Iterator[Sequence[str]] = iter(())
    if ready.batch is not None:
        examples = ready.batch.examples
        with fixed_draws(examples[0]) if (options or {}).get("sampling") else contextlib.nullcontext():
            found = iter(hypotheses(model, processor, task, ready.batch.inputs, num_beams, options))
    rows = []
    for index, record in zip(ready.indices, ready.records, strict=True):
        if index in ready.bad:
            row = {"index": index, "record": text_fields(record), "prediction": task.parse("", record)}
            rows.append(row | {"bad": ready.bad[index]} | ({} if rerank is None else {"reward": 0.0}))
            continue
        texts = next(found)
        predictions = [task.parse(text, record) for text in (texts[:1] if rerank is None else texts)]
        row = {"index": index, "record": text_fields(record), "prediction": predictions[0]}
        if rerank is not None:
            rewards = rerank(predictions, [record] * len(predictions))
            row |= {"prediction": predictions[int(np.argmax(rewards))], "reward": float(np.max(rewards))}
        rows.append(row)
    return rows


def run_evaluation(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    config: EvaluationConfig,
    store: PredictionStore | None = None,
) -> Evaluation:
    """Evaluate as a configuration says."""
    processor = changed_processor(processor, config.processor)
    task = task_for(config, processor)
    source = open_source(config.source, config.task, task.modality)
    reward = None if config.rerank is None else get_reward(config.rerank.reward, config.rerank.args)
    return evaluate(
        model,
        processor,
        task,
        source,
        batch_size=config.batch_size,
        num_beams=config.num_beams,
        options=config.search,
        description=f"evaluate {config.name}",
        store=store,
        rerank=reward,
        workers=config.workers,
        max_bad_rows=config.max_bad_rows,
    )


def task_for(config: EvaluationConfig, processor: UnivalProcessor) -> Task:
    """Return the task of an evaluation; its position tokens are the model's unless its arguments say otherwise."""
    task = get_task(config.task, config.task_args)
    if "num_bins" in task.model_dump() and "num_bins" not in config.task_args:
        return get_task(config.task, config.task_args | {"num_bins": processor.num_bins})
    return task


def changed_processor(processor: UnivalProcessor, changes: Mapping[str, Any]) -> UnivalProcessor:
    """Return a processor with other media sizes and the same tokenizer.

    Raises:
        UserError: If there is no such field.
    """
    for name in changes:
        if name not in PROCESSOR_FIELDS:
            raise UserError(f"unknown processor option {name!r}", fix=did_you_mean(name, PROCESSOR_FIELDS))
    if not changes:
        return processor
    return UnivalProcessor(
        processor.tokenizer, **{name: getattr(processor, name) for name in PROCESSOR_FIELDS} | dict(changes)
    )


def evaluate_all(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    configs: Sequence[EvaluationConfig],
    out_dir: str | Path,
    world: World | None = None,
    checkpoint: str | Path | None = None,
) -> dict[str, Any]:
    """Run evaluations and return their summaries; the first of several processes writes files.

    `evaluation.json` holds the summaries, `metrics.json` the summaries with all that can change them,
    `predictions-<name>.jsonl` the rows and `submission-<name>.json` what a benchmark's server reads. Finished rows wait
    in `.unfinished/` until all evaluations are done.

    Args:
        model, processor, configs: What to evaluate how.
        out_dir: Folder, seen by all processes.
        world: The processes that share the rows; by default this one alone, even where `torchrun` has started several.
        checkpoint: Where the model comes from, for the record.
    """
    out_dir, world = Path(out_dir), world or World()
    check_suite(configs)
    weights = weights_hash(model)
    report, metrics, stores = {}, {}, []
    problems: list[UserError] = []
    for config in configs:
        known = known_settings(model, processor, config, weights)
        # Not the threads: an evaluation goes on with any number of them, as it does with any number of processes.
        identity = known | {
            "versions": {name: known["versions"][name] for name in known["versions"] if name != "threads"}
        }
        key = text_hash([json.dumps(identity, sort_keys=True, default=str)])[:16]
        store = PredictionStore(out_dir / ".unfinished" / f"{config.name}-{key}", world)
        stores.append(store)
        result = run_evaluation(model, processor, config, store)
        report[config.name] = result.summary()
        metrics[config.name] = result.summary() | {
            "settings": known,
            "split_sha256": split_hash(result.records),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "batch_size": config.batch_size,
            "processes": world.size,
        }
        if world.is_main:
            write_predictions(out_dir / f"predictions-{config.name}.jsonl", result)
            if not result.scores:  # right for a test split, a misnamed column for one's own rows
                console.print(f"{config.name}: no row has labels, columns {', '.join(result.records[0])}", markup=False)
            try:
                if config.submission is not None:
                    write_submission_file(out_dir, config, result)
            except UserError as error:  # two rows with one identity: what was predicted and scored is kept
                problems.append(error)
        store.wait()  # everybody has read the rows
    if world.is_main:
        for store in stores:
            store.discard()
        write_json(out_dir / "metrics.json", metrics, indent=1)
        write_json(out_dir / "evaluation.json", report, indent=1)
    for problem in problems:
        raise problem
    return report


@contextlib.contextmanager
def precise(model: UnivalForConditionalGeneration, device: torch.device, precision: str) -> Iterator[None]:
    """Move a model to a device and compute in a precision, `fp32` or `bf16`, while the block runs."""
    model.to(device)  # pyright: ignore[reportArgumentType]  # its `self` is a decorated function's
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def known_settings(
    model: UnivalForConditionalGeneration, processor: UnivalProcessor, config: EvaluationConfig, weights: str
) -> dict[str, Any]:
    """Return what `provenance.settings` says about an evaluation that has not begun."""
    processor = changed_processor(processor, config.processor)
    task = task_for(config, processor)
    texts = task.answer_set() or ()
    answers = closed_set(processor, texts)[0] if texts else []
    changes = (code_options(model.config, processor) if task.writes_codes else {}) | config.search
    no_prompt = {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    search_settings = search_options(task, answers, no_prompt, config.num_beams, changes)
    known = settings(model, processor, task, config, search_settings, weights)
    if config.rerank is not None:
        known |= {"rerank": config.rerank.model_dump(mode="json"), "rerank_files": files_of(config.rerank.args)}
    return known | {"answers": {"number": len(texts), "sha256": text_hash(texts)} if texts else None}


def write_predictions(path: Path, result: Evaluation) -> None:
    """Write one JSON line per sample: the text fields of its record, the prediction and its scores."""
    with replacing(path) as file:
        for index, (record, prediction) in enumerate(zip(result.records, result.predictions, strict=True)):
            scores = {name: float(values[index]) for name, values in result.scores.items()}
            row = {**record, "prediction": prediction, "scores": scores}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_submission_file(out_dir: Path, config: EvaluationConfig, result: Evaluation) -> Path:
    """Write the predictions as the benchmark's own evaluation reads them (`unival.evaluation.submission`)."""
    assert config.submission is not None
    path = out_dir / f"submission-{config.name}.{'csv' if config.submission == 'clotho' else 'json'}"
    pairs = zip(result.records, result.predictions, strict=True)
    write_submission(config.submission, [{**record, "prediction": prediction} for record, prediction in pairs], path)
    return path


class SoupEvaluator:
    """What `soups sweep` calls: live tensors to write a point into, and per-sample scores of the model they make.

    Args:
        model, processor, task: Under evaluation.
        sources: Rows by suffix; with several of them, metrics are named `metric@suffix`.
        metrics: Metrics of the task, or rewards.
        batch_size: Rows per forward pass.
    """

    def __init__(
        self,
        model: UnivalForConditionalGeneration,
        processor: UnivalProcessor,
        task: Task,
        sources: Mapping[str, Source],
        metrics: Sequence[str],
        batch_size: int,
    ) -> None:
        self.model, self.processor, self.task, self.metrics = model, processor, task, metrics
        self.parts = {}
        self.predictions: list[list[str]] = []
        for suffix, source in sources.items():
            records = [source[index] for index in range(len(source))]
            examples = [task.example(record) for record in records]
            starts = range(0, len(examples), batch_size)
            batches = [processor.collate(examples[start : start + batch_size]) for start in starts]
            rewards = {m: get_reward(m, records=records) for m in metrics if m in REWARDS or ":" in m}
            self.parts[suffix] = (records, batches, rewards)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors."""
        return self.model.state_dict()

    def evaluate(self) -> dict[str, list[float]]:
        """Return per-sample scores of the current weights."""
        result, self.predictions = {}, []
        for suffix, (records, batches, rewards) in self.parts.items():
            texts = [t for b in batches for t in generate(self.model, self.processor, self.task, b.inputs)]
            predictions = [self.task.parse(t, r) for t, r in zip(texts, records, strict=True)]
            scores: dict[str, Any] = dict(self.task.score(predictions, records))
            scores |= {name: reward(predictions, records) for name, reward in rewards.items() if name not in scores}
            for name in self.metrics:
                if name not in scores:
                    raise UserError(f"unknown metric {name!r}", fix=did_you_mean(name, [*scores, *REWARDS]))
                result[f"{name}@{suffix}" if len(self.parts) > 1 else name] = [float(v) for v in scores[name]]
            self.predictions.append(texts)
        return result

    def samples(self) -> list[dict[str, str]]:
        """Return one entry per sample for the pages that `soups` draws: identity, prediction, reference."""
        records = next(iter(self.parts.values()))[0]
        fields = ("uid", "caption", "question", "text")
        return [
            {k: str(record[k]) for k in fields if k in record} | {"prediction": prediction}
            for record, prediction in zip(records, self.predictions[0], strict=True)
        ]


def soup_evaluator(
    checkpoint: str | Path,
    task: str = "caption",
    modality: str = "image",
    metrics: str = "cider_d",
    content: str | None = None,
    styles: str = "",
    concepts: str = "all",
    split: str = "test",
    limit: int = 200,
    batch_size: int = 100,
    device: str = "auto",
) -> SoupEvaluator:
    """Build the evaluator of `soups sweep ... --evaluator unival.evaluate:soup_evaluator --arg task=vqa`.

    Args:
        checkpoint: Model folder that supplies configuration and processor.
        task, modality: What to evaluate.
        metrics: Comma-separated metrics of the task, or rewards.
        content: What rows ask about; by default the task's own.
        styles: Comma-separated art styles, each scored apart; by default the training styles together.
        concepts: `all` of the embedded world's concepts, or the `cast` of its clips.
        split, limit: Rows of the embedded world, `limit` for each style.
        batch_size: Rows per forward pass.
        device: Where to compute; `auto` is a GPU when there is one.
    """
    model, processor = load_model(checkpoint, find_device(device))
    unit = get_task(task, {"modality": modality})
    chosen = [[style] for style in styles.split(",")] if styles else [None]
    sources = {}
    for style in chosen:
        options = {"concepts": concepts} if unit.modality == "image" else {}
        config = SourceConfig.model_validate(
            {"world": split, "styles": style, "content": content, "limit": limit, "options": options}
        )
        sources[style[0] if style else ""] = open_source(config, task, unit.modality)
    return SoupEvaluator(model, processor, unit, sources, metrics.split(","), batch_size)


def find_evaluation(configs: Sequence[EvaluationConfig], names: Sequence[str]) -> list[EvaluationConfig]:
    """Select evaluations by name.

    Raises:
        UserError: If a name is unknown.
    """
    by_name = {config.name: config for config in configs}
    for name in names:
        if name not in by_name:
            raise UserError(f"unknown evaluation {name!r}", fix=did_you_mean(name, by_name))
    return [by_name[name] for name in names] if names else list(configs)
