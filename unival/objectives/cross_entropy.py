"""Label-smoothed cross entropy and the encouraging loss over target tokens, as the original's (specification 7.1, 7.2).

Every option is off by default. `docs/objectives.md` has the formulas.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from unival.batch import Batch
from unival.errors import UserError
from unival.generate.trie import AnswerTrie
from unival.model.linear import onto_rows
from unival.model.modeling import MediaTokens, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives._likelihood import (
    Targets,
    allowed_ids,
    at_targets,
    by_chunks,
    column_of,
    decode,
    encode,
    encode_media,
    length_chunks,
)
from unival.objectives.base import Loss, check_at_least

NORMALISATIONS = ("token", "example", "batch")


class Terms(NamedTuple):
    """Numbers per target token, all (n,).

    Attributes:
        nll: -log p of the token, summed over the two passes of R-Drop; without gradient.
        rank: What drop-worst sorts by: the cross entropy of the first pass.
        total: What is minimised.
        row: Row of the batch.
    """

    nll: Tensor
    rank: Tensor
    total: Tensor
    row: Tensor


class Objective:
    """Mean over target tokens of `(1 - eps - eps_i) nll + eps_i * sum of -log p`, `eps_i = eps / (V - 1)`, and options.

    Args:
        processor: Belongs to the model.
        label_smoothing: eps.
        normalise: `token` averages over the tokens of an update, so long targets dominate; `example` averages the
            per-example sums, which weighs a one-word answer like a caption; `batch` averages over the batches of an
            update (one per process and pass) what each has as the mean of its own tokens, as the original does with
            two groups.
        log_end: Turns on the encouraging loss: a bonus `log(1 - p)`, continued by its tangent where p > log_end
            (the original's recipes: 0.75; 1 never continues).
        drop_worst_ratio, drop_worst_after: Once more than `drop_worst_after` updates are made, this share of the tokens
            of a batch, those of the largest cross entropy, is left out.
        rdrop: Weight of R-Drop: every example passes twice, with other dropout masks, and the symmetric divergence of
            both predictions is added.
        constraint_range: (first, end): logits of other ids than these and the four special ones are left out.
        answers: Closed sets by task name, each a list or a text file with one answer per line: at every token only
            those that continue an answer are possible. Rows of other tasks are free.
        confidence: Field of the records whose value, or the largest of its list, multiplies the log-probabilities of
            an example; records without it and without `answers` count fully.
        ignore_prefix, ignore_eos: Leave out the first target tokens, or `</s>`.
    """

    def __init__(
        self,
        processor: UnivalProcessor | None,
        label_smoothing: float = 0.0,
        normalise: str = "token",
        log_end: float | None = None,
        drop_worst_ratio: float = 0.0,
        drop_worst_after: int = 0,
        rdrop: float = 0.0,
        constraint_range: Sequence[int] | None = None,
        answers: Mapping[str, Sequence[str] | str] | None = None,
        confidence: str | None = None,
        ignore_prefix: int = 0,
        ignore_eos: bool = False,
    ) -> None:
        if normalise not in NORMALISATIONS:
            raise UserError(f"unknown normalise {normalise!r}", fix=f"valid: {', '.join(NORMALISATIONS)}")
        check_share("label_smoothing", label_smoothing)
        check_share("drop_worst_ratio", drop_worst_ratio)
        check_at_least(0, ignore_prefix=ignore_prefix, drop_worst_after=drop_worst_after, rdrop=rdrop)
        if log_end is not None and not 0.0 < log_end <= 1.0:
            raise UserError(f"log_end is {log_end}", fix="give a probability above 0, such as 0.75, or 1")
        if constraint_range is not None and answers:
            raise UserError("constraint_range and answers are both given", fix="give one: each restricts the logits")
        if answers is not None and not isinstance(answers, Mapping):
            raise UserError(
                f"answers: expected a list or a file for each task, got {answers!r}", fix="{vqa: [yes, no]}"
            )
        self.label_smoothing, self.normalise, self.log_end = label_smoothing, normalise, log_end
        self.drop_worst_ratio, self.drop_worst_after, self.rdrop = drop_worst_ratio, drop_worst_after, rdrop
        self.constraint_range, self.confidence = constraint_range, confidence
        self.ignore_prefix, self.ignore_eos = ignore_prefix, ignore_eos
        self.tries: dict[str, AnswerTrie] = {}
        if processor is not None:  # otherwise the arguments are only checked, before there is a tokenizer
            self.processor = processor
            self.tries = {task: self._trie(given) for task, given in (answers or {}).items()}

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch, update: int = 0) -> Loss:
        """Return the loss of a batch and, for each of its tasks, the mean -log p of its target tokens."""
        terms = self.terms(model, batch)
        kept = self.kept(terms, update).total
        num = max(1, self.passes * (len(batch.examples) if self.normalise == "example" else len(kept)))
        size = 1 if self.normalise == "batch" else num
        return Loss(kept.sum() / num, task_means(batch, terms.nll / self.passes, terms.row), size)

    def size(self, batch: Batch, update: int = 0) -> float:
        """Return what `Loss.size` of a batch will be, without computing the loss: accumulation asks for it."""
        if self.normalise == "batch":
            return 1
        if self.normalise == "example":
            return max(1, self.passes * len(batch.examples))
        tokenizer = self.processor.tokenizer
        is_kept = batch.target.ne(tokenizer.pad_token_id)
        is_kept[:, : self.ignore_prefix] = False
        if self.ignore_eos:
            is_kept &= batch.target.ne(tokenizer.eos_token_id)
        return max(1, self.passes * self.num_kept(int(is_kept.sum()), update))

    def num_kept(self, num: int, update: int) -> int:
        """Return how many of `num` tokens are not dropped as the worst."""
        is_on = self.drop_worst_ratio > 0.0 and update > self.drop_worst_after
        return int(num * (1.0 - self.drop_worst_ratio)) if is_on else num

    def kept(self, terms: Terms, update: int) -> Terms:
        """Drop the tokens of the largest cross entropy, once that has begun."""
        num = self.num_kept(len(terms.rank), update)
        if num == len(terms.rank):
            return terms
        best = terms.rank.topk(num, largest=False).indices
        return Terms(*(values[best] for values in terms))

    def terms(self, model: UnivalForConditionalGeneration, batch: Batch) -> Terms:
        """Return the numbers of every target token; the rows are in the order of `length_chunks`."""
        media = encode_media(model, batch)
        if any(isinstance(part, FSDPModule) for part in model.modules()):
            # Every process gathers a layer once for each time that it runs: all must run it equally often.
            chunks = [torch.arange(len(batch.target), device=batch.target.device)]
        else:
            chunks = length_chunks(batch, model.config.pad_token_id)
        parts = [self._part(model, batch, media, rows) for rows in chunks]
        return Terms(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    @property
    def passes(self) -> int:
        """How often a token counts: twice with R-Drop."""
        return 2 if self.rdrop > 0.0 else 1

    def _part(
        self, model: UnivalForConditionalGeneration, batch: Batch, media: MediaTokens | None, rows: Tensor
    ) -> Terms:
        config, passes = model.config, self.passes
        encoded = encode(model, batch, media, rows.repeat(passes))
        features, target = decode(model, batch, encoded, rows.repeat(passes))
        found = at_targets(features, target, config.pad_token_id)
        found = Targets(*(values.unflatten(0, (passes, -1)).transpose(0, 1) for values in found))  # n passes ...
        ids, row, place = found.ids[:, 0], rows[found.row[:, 0]], found.place[:, 0]
        allowed = self._allowed(batch, row.tolist(), ids.tolist()) if self.tries else []
        kept = (place >= self.ignore_prefix) & (ids.ne(config.eos_token_id) | (not self.ignore_eos))
        index = kept.nonzero()[:, 0]
        ids, row = ids[index], row[index]
        inputs = [found.features[index], ids, index]
        if self.confidence is not None:
            inputs.append(confidences(batch, self.confidence).to(row.device)[row])

        columns = allowed_ids(self.constraint_range, config.vocab_size, ids.device)
        project = onto_rows(model.decoder.output_projection, columns)
        if columns is not None:
            inputs[1] = column_of(ids, columns)

        def score(features: Tensor, ids: Tensor, index: Tensor, confidence: Tensor | None = None) -> Tensor:
            mask = None
            if allowed:
                mask = answer_mask([allowed[i] for i in index.tolist()], config.vocab_size, ids.device)
            log_probs = []
            for half in features.unbind(1):
                log_probs.append(log_probabilities(project(half), mask, confidence))
            return self._score(log_probs, ids, mask, config.vocab_size)

        width = config.vocab_size if columns is None else len(columns)
        nll, rank, total = by_chunks(score, inputs, width * passes).unbind(1)
        return Terms(nll.detach(), rank.detach(), total, row)

    def _score(self, log_probs: Sequence[Tensor], ids: Tensor, mask: Tensor | None, vocab_size: int) -> Tensor:
        """Return `nll`, `rank` and `total` as columns (n, 3) from log-probabilities (n, V) of each pass."""
        eps = self.label_smoothing
        is_restricted = self.constraint_range is not None
        losses = [smoothed(lp, ids, eps, mask, is_restricted) for lp in log_probs]
        total = torch.stack(losses).sum(0)
        if self.log_end is not None:
            for lp in log_probs:
                total = total + encouragement(lp, ids, eps, self.log_end, vocab_size)
        if self.rdrop > 0.0:
            total = total + self.rdrop * symmetric_divergence(*log_probs)
        nll = -torch.stack([lp.detach().gather(-1, ids[:, None])[:, 0] for lp in log_probs]).sum(0)
        return torch.stack([nll, losses[0].detach(), total], dim=1)

    def _trie(self, answers: Sequence[str] | str) -> AnswerTrie:
        if isinstance(answers, str):
            if not Path(answers).is_file():
                raise UserError("no such file of answers", where=answers, fix="give one answer per line, or a list")
            answers = Path(answers).read_text(encoding="utf-8").split("\n")
        texts = [answer.strip() for answer in answers if answer.strip()]
        return AnswerTrie([ids[1:-1] for ids in self.processor.encode(texts)], self.processor.tokenizer.eos_token_id)

    def _allowed(self, batch: Batch, rows: Sequence[int], ids: Sequence[int]) -> list[list[int] | None]:
        """Return which tokens are possible at each target token; None where all are."""
        names = batch.task_names or ["all"] * len(batch.examples)
        allowed, path, last = [], [], -1
        for row, token in zip(rows, ids, strict=True):
            path = path if row == last else []
            trie, last = self.tries.get(names[row]), row
            allowed.append(None if trie is None else trie.children(path))
            if trie is not None and token not in allowed[-1]:
                uid, text = batch.examples[row].uid, batch.examples[row].target
                what = f"the target {text!r} is not among the answers of task {names[row]!r}"
                raise UserError(what, where=f"record {uid}", fix="add it to the answers, or drop the record")
            path.append(token)
        return allowed


def log_probabilities(logits: Tensor, mask: Tensor | None, confidence: Tensor | None) -> Tensor:
    """Return float32 log-probabilities (n, V), -inf outside a mask (n, V), times a confidence (n,)."""
    logits = logits.float()
    log_probs = F.log_softmax(logits if mask is None else logits.masked_fill(~mask, -torch.inf), dim=-1)
    return log_probs if confidence is None else log_probs * confidence[:, None]


def smoothed(log_probs: Tensor, ids: Tensor, eps: float, mask: Tensor | None, is_restricted: bool) -> Tensor:
    """Return the label-smoothed cross entropy (n,) of log-probabilities (n, V)."""
    nll = -log_probs.gather(-1, ids[:, None])[:, 0]
    if eps == 0.0:
        return nll
    if mask is None:
        share = eps / (log_probs.shape[1] - 1 + (1e-6 if is_restricted else 0.0))
        return (1.0 - eps - share) * nll - share * log_probs.sum(-1)
    shares = eps / (mask.sum(-1) - 1 + 1e-6)
    return (1.0 - eps - shares) * nll - shares * log_probs.masked_fill(~mask, 0.0).sum(-1)


def encouragement(log_probs: Tensor, ids: Tensor, eps: float, log_end: float, vocab_size: int) -> Tensor:
    """Return the bonus (n,) of the encouraging loss: negative, and lower the surer the model is of the target."""

    def bonus(log_probs: Tensor) -> Tensor:
        p = log_probs.exp()
        logarithm = (1.0 - p).clamp(min=1e-5).log()
        if log_end == 1.0:
            return logarithm
        tangent = math.log(1.0 - log_end) - (p - log_end) / (1.0 - log_end)
        return torch.where(p > log_end, tangent, logarithm)

    gold = (1.0 - eps) * bonus(log_probs.gather(-1, ids[:, None])[:, 0])
    return gold if eps == 0.0 else gold + eps / vocab_size * bonus(log_probs).sum(-1)


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return (KL(p||q) + KL(q||p)) / 2 of log-probabilities (n, V), as (n,); -inf in both counts nothing."""
    first, second = (values.masked_fill(values.isneginf(), -1e4) for values in (first, second))
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum(-1)


def answer_mask(allowed: Sequence[Sequence[int] | None], vocab_size: int, device: torch.device) -> Tensor:
    """Return a boolean mask (n, V) of the possible tokens; a row without a list is all True."""
    mask = torch.zeros(len(allowed), vocab_size, dtype=torch.bool)
    for row, tokens in enumerate(allowed):
        mask[row, slice(None) if tokens is None else torch.tensor(tokens)] = True
    return mask.to(device)


def confidences(batch: Batch, field: str) -> Tensor:
    """Return a field of the records as float32 (B,): of a list the largest, 1 for a record without answers or field."""
    values = []
    for example in batch.examples:
        value = example.record.get(field, None if "answers" in example.record else 1.0)
        if isinstance(value, list) and value:
            value = max(value)  # that of the answer to learn, the best one
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            what = f"the confidence {field!r} is {value!r}, not a positive number"
            raise UserError(what, where=f"record {example.uid}", fix="correct the record, or drop `confidence`")
        values.append(float(value))
    return torch.tensor(values)


def task_means(batch: Batch, nll: Tensor, row: Tensor) -> dict[str, float]:
    """Average token losses (n,) over the tokens of each task; `row` is the row of every token."""
    modality = batch.examples[0].modality
    names = batch.task_names or ["all"] * len(batch.examples)
    kinds = sorted(set(names))
    kind = torch.tensor([kinds.index(name) for name in names], device=row.device)[row]
    sums, counts = torch.bincount(kind, nll, len(kinds)), torch.bincount(kind, minlength=len(kinds))
    means = zip(kinds, sums.tolist(), counts.tolist(), strict=True)
    return {f"loss/{modality}_{name}": total / count for name, total, count in means if count}


def check_share(name: str, value: float) -> None:
    """Refuse a share that is not in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"{name} is {value}", fix="give a share of at least 0 and below 1")
