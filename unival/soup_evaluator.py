"""Score mixtures for studies: several tasks at once, rewards with arguments, ensembles of predictions.

What `soups study` calls, by name; this file knows nothing of it. `parts` names what is scored:

    {"caption": {"task": "caption", "metrics": ["cider_d"]}, "vqa": {"task": "vqa", "metrics": ["accuracy"]}}

A metric is one of the task's, a reward, a reward with arguments (`{"iou:small": {"size": "small"}}` under
`rewards`), or `log_likelihood`: of the reference, per token. With one metric a part gives its name to the score, with
several `part/metric`; `mean` is the mean over parts with one metric each, CIDEr-D in units of 10. A single part named
"" gives plain metric names.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from unival.batch import Batch
from unival.checkpoint import load_model
from unival.data.source import open_source
from unival.device import find_device
from unival.errors import UserError, did_you_mean
from unival.evaluation.answering import generate
from unival.model.modeling import UnivalEncoderOutput, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.rewards import get_reward
from unival.schema import SourceConfig
from unival.sections import Section
from unival.tasks.base import get_task

HIGHEST = {"cider_d": 10.0}
LIKELIHOOD = "log_likelihood"
NUM_SAMPLES = 6  # shown on a page, with their pictures
SAMPLE_FIELDS = ("question", "text", "caption")


class PartConfig(Section):
    """One task on one set of rows."""

    task: str
    task_args: dict[str, Any] = Field(default_factory=dict)
    content: str | None = None
    """What rows ask about; by default the task's own."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Of the world's generator."""
    metrics: list[str] = Field(min_length=1)
    rewards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Arguments of metrics that are rewards, by name."""


class Part:
    """One task with its batches and rewards."""

    def __init__(self, name: str, config: PartConfig, source: SourceConfig, processor: UnivalProcessor) -> None:
        self.name, self.metrics = name, config.metrics
        bins = {"num_bins": processor.num_bins}
        args = config.task_args | (bins if config.task == "grounding" else {})
        self.task = get_task(config.task, args)
        rows = open_source(source, config.task, self.task.modality)
        self.records = [rows[index] for index in range(len(rows))]
        self.batches: list[Batch] = []
        known = set(self.task.score([self.task.parse("", self.records[0])], self.records[:1]))
        self.rewards = {
            metric: get_reward(metric, config.rewards.get(metric), records=self.records, given=bins)
            for metric in config.metrics
            if metric not in known and metric != LIKELIHOOD
        }

    def collate(self, processor: UnivalProcessor, batch_size: int) -> None:
        """Make the batches."""
        examples = [self.task.example(record) for record in self.records]
        starts = range(0, len(examples), batch_size)
        self.batches = [processor.collate(examples[start : start + batch_size]) for start in starts]

    @property
    def needs_text(self) -> bool:
        """Say whether anything is scored that the model writes."""
        return self.metrics != [LIKELIHOOD]

    def score(self, texts: Sequence[str], likelihoods: Sequence[float] = ()) -> dict[str, list[float]]:
        """Return per-sample scores of generated texts by metric."""
        predictions = [self.task.parse(text, record) for text, record in zip(texts, self.records, strict=True)]
        scores: dict[str, Any] = dict(self.task.score(predictions, self.records))
        scores |= {metric: reward(predictions, self.records) for metric, reward in self.rewards.items()}
        scores |= {LIKELIHOOD: likelihoods} if likelihoods else {}
        found = {}
        for metric in self.metrics:
            if metric not in scores:
                raise UserError(f"unknown metric {metric!r}", fix=did_you_mean(metric, scores))
            found[self.label(metric)] = [float(value) for value in scores[metric]]
        return found

    def label(self, metric: str) -> str:
        """Return the name of a metric among those of all parts."""
        if not self.name:
            return metric
        return self.name if len(self.metrics) == 1 else f"{self.name}/{metric}"


class Parts:
    """All parts, ready to be scored.

    Args:
        processor: Of the models.
        parts: Their configurations by name.
        split, styles, limit: Rows of the embedded world; sounds have no style.
        options: Of the world's generators of pictures and clips, for parts with one of them.
        batch_size: Rows per forward pass.
    """

    def __init__(
        self,
        processor: UnivalProcessor,
        parts: Mapping[str, Mapping[str, Any]],
        split: str,
        styles: Sequence[str],
        options: Mapping[str, Any],
        limit: int,
        batch_size: int,
    ) -> None:
        self.parts = []
        for name, given in parts.items():
            config = PartConfig.model_validate(dict(given))
            is_drawn = config.task_args.get("modality", "image") != "audio"
            source = SourceConfig.model_validate(
                {
                    "world": split,
                    "styles": list(styles) or None if is_drawn else None,
                    "content": config.content,
                    "limit": limit,
                    "options": config.options | (dict(options) if is_drawn else {}),
                }
            )
            part = Part(name, config, source, processor)
            part.collate(processor, batch_size)
            self.parts.append(part)
        self.texts: list[list[str]] = []

    def score(self, texts: Sequence[list[str]], likelihoods: Sequence[list[float]] = ()) -> dict[str, list[float]]:
        """Return the scores of the texts of every part."""
        self.texts = list(texts)
        found, single = {}, []
        for index, (part, own) in enumerate(zip(self.parts, texts, strict=True)):
            scores = part.score(own, likelihoods[index] if likelihoods else ())
            found |= scores
            if len(part.metrics) == 1:
                single.append(np.array(scores[part.label(part.metrics[0])]) / HIGHEST.get(part.metrics[0], 1.0))
        shared = set.intersection(*(set(part.metrics) for part in self.parts))
        if len(self.parts) > 1 and len(single) == len(self.parts):
            found["mean"] = np.mean(single, axis=0).tolist()
        elif len(self.parts) > 1:  # several metrics of the same name: their mean over the parts
            for metric in sorted(shared):
                found[metric] = np.mean([found[part.label(metric)] for part in self.parts], axis=0).tolist()
        return found

    def samples(self) -> list[dict[str, str]]:
        """Return the first examples of every part: identity, picture, question or reference, prediction."""
        entries = []
        for part, texts in zip(self.parts, self.texts, strict=True):
            share = max(1, NUM_SAMPLES // len(self.parts))
            for record, text in zip(part.records[:share], texts[:share], strict=True):
                entry = {"uid": f"{part.name}/{record['uid']}"}
                if isinstance(record.get("image"), np.ndarray):
                    entry["picture"] = data_uri(record["image"])
                entry |= {field: str(record[field]) for field in SAMPLE_FIELDS if field in record}
                if "answers" in record:
                    entry["reference"] = record["answers"][0]
                entries.append(entry | {"prediction": text})
        return entries


def data_uri(picture: np.ndarray) -> str:
    """Return pixels (H, W, 3) uint8 as a small picture inside a text."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Evaluator:
    """Live tensors to write a mixture into, and the scores of the model that they make."""

    def __init__(self, model: UnivalForConditionalGeneration, processor: UnivalProcessor, parts: Parts) -> None:
        self.model, self.processor, self.parts = model, processor, parts

    def state(self) -> dict[str, Tensor]:
        """Return the live tensors."""
        return self.model.state_dict()

    def evaluate(self) -> dict[str, list[float]]:
        """Return per-sample scores of the current weights."""
        self.model.eval()
        return self.parts.score(
            [self._texts(part) for part in self.parts.parts],
            [
                [value for b in part.batches for value in log_likelihood(self.model, b)]
                if LIKELIHOOD in part.metrics
                else []
                for part in self.parts.parts
            ],
        )

    def _texts(self, part: Part) -> list[str]:
        if not part.needs_text:
            return [""] * len(part.records)
        return [text for b in part.batches for text in generate(self.model, self.processor, part.task, b.inputs)]

    def samples(self) -> list[dict[str, str]]:
        """Return examples of the weights scored last."""
        return self.parts.samples()


class Ensemble:
    """Several models whose log-probabilities are averaged at every token; greedy decoding, without a cache."""

    def __init__(
        self, models: Sequence[UnivalForConditionalGeneration], processor: UnivalProcessor, parts: Parts
    ) -> None:
        self.models, self.processor, self.parts = models, processor, parts

    def evaluate(self, weights: Sequence[float]) -> dict[str, list[float]]:
        """Return per-sample scores of the ensemble with these weights."""
        texts = []
        for part in self.parts.parts:
            if part.task.answer_set() or part.task.prompt_type != "none" or part.task.writes_codes:
                what = f"no ensemble of {part.name!r}: closed set of answers, decoder prompt or picture codes"
                raise UserError(what, fix="leave the ensemble out, or score parts that are written as free text")
            limit, shortest = part.task.max_new_tokens, part.task.min_new_tokens
            rows = [decode(self.models, weights, batch.inputs, limit, shortest) for batch in part.batches]
            texts.append([text for row in rows for text in self.processor.decode(row)])
        return self.parts.score(texts)


@torch.no_grad()
def log_likelihood(model: UnivalForConditionalGeneration, batch: Batch) -> list[float]:
    """Return the mean log-probability of the reference's tokens, `</s>` included, of each example."""
    batch = batch.to(model.device)
    encoded = model.encoder(**batch.inputs)
    features = model.decoder(model.shift_right(batch.target), encoded)
    log_probs = model.decoder.output_projection(features).float().log_softmax(-1)
    own = log_probs.gather(-1, batch.target[..., None])[..., 0]  # B T
    kept = batch.target.ne(model.config.pad_token_id)
    return ((own * kept).sum(1) / kept.sum(1)).tolist()


@torch.no_grad()
def decode(
    models: Sequence[UnivalForConditionalGeneration],
    weights: Sequence[float],
    inputs: Mapping[str, Tensor],
    max_new_tokens: int,
    min_new_tokens: int = 1,
) -> Tensor:
    """Return the ids (B, T) of greedy decoding by the weighted mean of the models' log-probabilities.

    The last of `max_new_tokens` is `</s>`, as in the search of one model, and `<pad>` is all that is never written.
    """
    config, device = models[0].config, models[0].device
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    last = min(max_new_tokens, config.max_text_positions) - 1  # `<s>` has a position as well
    encoded: list[UnivalEncoderOutput] = [model.encoder(**inputs) for model in models]
    rows = len(inputs["input_ids"])
    tokens = torch.full((rows, 1), config.bos_token_id, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(last + 1):
        total = torch.zeros((), device=device)
        for model, states, weight in zip(models, encoded, weights, strict=True):
            features = model.decoder(tokens, states)
            total = total + weight * model.decoder.output_projection(features[:, -1]).float().log_softmax(-1)
        total[:, config.pad_token_id] = -torch.inf
        if step < min_new_tokens:
            total[:, config.eos_token_id] = -torch.inf
        chosen = total.argmax(-1) if step < last else torch.full((rows,), config.eos_token_id, device=device)
        chosen = chosen.masked_fill(ended, config.pad_token_id)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        ended = ended | chosen.eq(config.eos_token_id)
        if ended.all():
            break
    return tokens[:, 1:]


def evaluator(
    checkpoint: str | Path,
    parts: Mapping[str, Mapping[str, Any]],
    split: str = "test",
    styles: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    limit: int = 100,
    batch_size: int = 100,
    device: str = "auto",
) -> Evaluator:
    """Build the evaluator of a study, `evaluator: unival.soup_evaluator:evaluator`.

    Args:
        checkpoint: Model folder that supplies configuration and processor.
        parts: What is scored, see the head of this file.
        split, styles, limit: Rows of the embedded world; styles by default those of the trainings.
        options: Of the world's generators of pictures and clips, such as `{max_objects: 2}`.
        batch_size: Rows per forward pass.
        device: Where to compute; `auto` is a GPU when there is one.
    """
    model, processor = load_model(checkpoint, find_device(device))
    return Evaluator(model, processor, Parts(processor, parts, split, styles, options or {}, limit, batch_size))


def ensemble(
    checkpoints: Sequence[str | Path],
    parts: Mapping[str, Mapping[str, Any]],
    split: str = "test",
    styles: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    limit: int = 100,
    batch_size: int = 100,
    device: str = "auto",
) -> Ensemble:
    """Build the ensemble of several models with the arguments of `evaluator`."""
    place = find_device(device)
    loaded = [load_model(checkpoint, place) for checkpoint in checkpoints]
    processor = loaded[0][1]
    models = [model.eval() for model, _ in loaded]
    return Ensemble(models, processor, Parts(processor, parts, split, styles, options or {}, limit, batch_size))
