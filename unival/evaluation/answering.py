"""What a model writes for a batch of a task: a closed set or free text, a decoder prompt, picture codes."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from unival.batch import Example, pad
from unival.errors import UserError
from unival.generate import AnswerTrie, SearchOptions, prompt_prefix, score_answers, search
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.tasks.base import Task


def generate(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    inputs: Mapping[str, torch.Tensor],
    num_beams: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return the text that a model writes for each row of a batch: the first of `hypotheses`."""
    return [texts[0] for texts in hypotheses(model, processor, task, inputs, num_beams, options)]


def hypotheses(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    inputs: Mapping[str, torch.Tensor],
    num_beams: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[list[str]]:
    """Return at least one text for each row of a batch, best first, by the original's rules (`docs/generation.md`).

    A task with a closed set gets one of its answers: the most probable by `score_answers`, or the best of a search
    inside the set, compared by log-probability. Otherwise the search compares log-probabilities per token, and forces
    `</s>` as the last of `task.max_new_tokens`. A picture is written as the codes that the model's settings count.

    Args:
        model, processor, task: What writes what.
        inputs: Of a batch.
        num_beams: 1 is greedy.
        options: Fields of `SearchOptions` that replace these settings.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    texts = task.answer_set() or ()
    answers, trie = closed_set(processor, texts) if texts else ([], None)
    changes = (code_options(model.config, processor) if task.writes_codes else {}) | dict(options or {})
    chosen = search_options(task, answers, inputs, num_beams, changes)
    prefix = prompt_prefix(model, inputs["input_ids"]) if chosen.repeat_prompt else None
    if task.prompt_type == "src":
        if task.choose != "score":
            fix = "score the candidates (`choose: score`), or use `prompt_type: prev_output`"
            raise UserError("a search cannot continue behind the `</s>` of `prompt_type: src`", fix=fix)
        prefix = inputs["input_ids"][:, 1:]
    if texts and task.choose == "score":
        best = score_answers(model, inputs, answers, prefix).argmax(1)
        return [[texts[index]] for index in best.tolist()]
    pad_id = model.config.pad_token_id
    found = search(model, inputs, chosen, trie, prefix)
    starts = [0] * len(found) if prefix is None else prefix.ne(pad_id).sum(1).tolist()
    tokens = [
        [hypothesis.tokens[start:] for hypothesis in row] or [[]] for row, start in zip(found, starts, strict=True)
    ]
    written = iter(processor.decode(pad([each for row in tokens for each in row], pad_id)))
    return [[next(written) for _ in row] for row in tokens]


@lru_cache(maxsize=2)
def closed_set(processor: UnivalProcessor, answers: tuple[str, ...]) -> tuple[list[list[int]], AnswerTrie]:
    """Return the ids of a closed set of answers and their trie; thousands of answers take a while."""
    ids = [row[1:-1] for row in processor.encode(answers)]
    return ids, AnswerTrie(ids, processor.tokenizer.eos_token_id)


@contextmanager
def fixed_draws(example: Example) -> Iterator[None]:
    """Draw from generators that are seeded by an example's uid, and put the others back after."""
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(str(example.uid).encode()))
        yield


def code_options(config: UnivalConfig, processor: UnivalProcessor) -> dict[str, Any]:
    """Return the search options of a picture as codes: how many, and which ids they are."""
    length = (config.code_image_size // 8) ** 2
    first = processor.tokenizer.convert_tokens_to_ids("<code_0>")  # tokens may have been added after the last one
    limits = {"min_len": length, "max_len_b": length, "constraint_range": (first, first + config.num_codes)}
    return {"gen_code": True, **limits}


def search_options(
    task: Task,
    answers: Sequence[Sequence[int]],
    inputs: Mapping[str, torch.Tensor],
    num_beams: int,
    changes: Mapping[str, Any],
) -> SearchOptions:
    """Return the settings of a task's search; `answers` are the ids of its candidates."""
    settings = {"beam": num_beams, "max_len_b": task.max_new_tokens - 1, "min_len": task.min_new_tokens}
    settings["repeat_prompt"] = changes.get("repeat_prompt", task.prompt_type == "prev_output")
    if answers:
        settings |= {"max_len_b": max(map(len, answers)), "min_len": 1, "unnormalized": True}
    if settings["repeat_prompt"]:
        settings["max_len_b"] += inputs["input_ids"].shape[1]
    return SearchOptions.from_original(settings | dict(changes))
