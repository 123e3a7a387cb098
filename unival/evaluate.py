"""Generate answers for a split, score them, keep every prediction and every per-sample score."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unival.batch import pad
from unival.checkpoint import load_model
from unival.data.source import Source, open_source
from unival.errors import UserError, did_you_mean
from unival.generate import AnswerTrie, SearchOptions, prompt_prefix, score_answers, search
from unival.log import track
from unival.metrics.bootstrap import bootstrap_mean
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.rewards import REWARDS, get_reward
from unival.schema import EvaluationConfig, SourceConfig
from unival.tasks.base import Scores, Task, get_task


@dataclass(slots=True)
class Evaluation:
    """Predictions and per-sample scores of one task on one split."""

    records: list[Mapping[str, Any]]
    predictions: list[Any]
    scores: Scores

    def summary(self) -> dict[str, Any]:
        """Return means with 95 % bootstrap intervals, and means per question type where rows have one."""
        means = {name: bootstrap_mean(s)._asdict() for name, s in self.scores.items()}
        summary: dict[str, Any] = {"samples": len(self.records), "metrics": means}
        if all("question_type" in record for record in self.records):
            summary["question_types"] = self._by_type()
        return summary

    def _by_type(self) -> dict[str, dict[str, float]]:
        types = np.array([record["question_type"] for record in self.records])
        table = {}
        for kind in sorted(set(types)):
            answers = Counter(r["answers"][0] for r, t in zip(self.records, types, strict=True) if t == kind)
            total = sum(answers.values())
            table[str(kind)] = {
                "samples": total,
                "accuracy": float(self.scores["accuracy"][types == kind].mean()),
                "most_frequent_answer": answers.most_common(1)[0][1] / total,
            }
        return table


def generate(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    inputs: Mapping[str, torch.Tensor],
    num_beams: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the text that a model writes for each row of a batch, by the original's rules (`docs/generation.md`).

    A task with `candidates` gets one of them: the most probable by `score_answers`, or the best of a search inside the
    set, compared by log-probability. Otherwise the search compares log-probabilities per token, and forces `</s>` as
    the last of `task.max_new_tokens`.

    Args:
        model, processor, task: What writes what.
        inputs: Of a batch.
        num_beams: 1 is greedy.
        options: Fields of `SearchOptions` that replace these settings.
    """
    answers = [ids[1:-1] for ids in processor.encode(task.candidates)] if task.candidates else []
    chosen = search_options(task, answers, inputs, num_beams, options or {})
    prefix = prompt_prefix(model, inputs["input_ids"]) if chosen.repeat_prompt else None
    if task.candidates and task.choose == "score":
        best = score_answers(model, inputs, answers, prefix).argmax(1)
        return [task.candidates[index] for index in best.tolist()]
    pad_id = model.config.pad_token_id
    trie = AnswerTrie(answers, model.config.eos_token_id) if answers else None
    found = search(model, inputs, chosen, trie, prefix)
    starts = [0] * len(found) if prefix is None else prefix.ne(pad_id).sum(1).tolist()
    rows = [row[0].tokens[start:] if row else [] for row, start in zip(found, starts, strict=True)]
    return processor.decode(pad(rows, pad_id))


def search_options(
    task: Task,
    answers: Sequence[Sequence[int]],
    inputs: Mapping[str, torch.Tensor],
    num_beams: int,
    changes: Mapping[str, Any],
) -> SearchOptions:
    """Return the settings of a task's search; `answers` are the ids of its candidates."""
    settings = {"beam": num_beams, "max_len_b": task.max_new_tokens - 1, "min_len": task.min_new_tokens}
    if answers:
        settings |= {"max_len_b": max(map(len, answers)), "min_len": 1, "unnormalized": True}
    if changes.get("repeat_prompt"):
        settings["max_len_b"] += inputs["input_ids"].shape[1]
    return SearchOptions.from_original(settings | dict(changes))


def evaluate(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    source: Source,
    batch_size: int = 64,
    num_beams: int = 1,
    options: Mapping[str, Any] | None = None,
    description: str = "evaluate",
) -> Evaluation:
    """Evaluate a task on all rows of a source (one row per medium where the source offers several).

    `num_beams` and `options` are those of `generate`.
    """
    model.eval()
    records = [source[index] for index in range(len(source))]
    examples = [task.example(record) for record in records]
    predictions = []
    starts = range(0, len(examples), batch_size)
    for start in track(starts, description, len(starts)):
        batch = processor.collate(examples[start : start + batch_size])
        texts = generate(model, processor, task, batch.inputs, num_beams, options)
        rows = records[start : start + batch_size]
        predictions += [task.parse(text, record) for text, record in zip(texts, rows, strict=True)]
    return Evaluation(records, predictions, task.score(predictions, records))


def run_evaluation(
    model: UnivalForConditionalGeneration, processor: UnivalProcessor, config: EvaluationConfig
) -> Evaluation:
    """Evaluate as a configuration says."""
    task = get_task(config.task, config.task_args)
    source = open_source(config.source, config.task, task.modality)
    description = f"evaluate {config.name}"
    return evaluate(model, processor, task, source, config.batch_size, config.num_beams, config.search, description)


def evaluate_all(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    configs: Sequence[EvaluationConfig],
    out_dir: str | Path,
) -> dict[str, Any]:
    """Run evaluations; write `evaluation.json` (summaries) and `predictions-<name>.jsonl`."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    report = {}
    for config in configs:
        result = run_evaluation(model, processor, config)
        report[config.name] = result.summary()
        write_predictions(out_dir / f"predictions-{config.name}.jsonl", result)
    temporary = out_dir / ".evaluation.json.tmp"
    temporary.write_text(json.dumps(report, indent=1), encoding="utf-8")
    temporary.replace(out_dir / "evaluation.json")
    return report


def write_predictions(path: Path, result: Evaluation) -> None:
    """Write one JSON line per sample: the text fields of its record, the prediction and its scores."""
    with path.open("w", encoding="utf-8") as file:
        for index, (record, prediction) in enumerate(zip(result.records, result.predictions, strict=True)):
            fields = {k: v for k, v in record.items() if isinstance(v, str | int | float | list)}
            scores = {name: float(values[index]) for name, values in result.scores.items()}
            file.write(json.dumps(fields | {"prediction": prediction, "scores": scores}) + "\n")


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
            rewards = {m: get_reward(m, records=records) for m in metrics if m in REWARDS}
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
    """
    model, processor = load_model(checkpoint)
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
