"""The original's beam search and sampling on top of `transformers`' `generate` (specification 8).

`generate` runs the encoder once, keeps the caches and moves the beams; `SearchRules` decides what a token may be and
what it scores, `FirstToFinish` which hypotheses count.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unival.errors import UserError
from unival.generate.options import SearchOptions
from unival.generate.paths import FirstToFinish, Hypothesis, Paths
from unival.generate.rules import SearchRules
from unival.generate.trie import AnswerTrie
from unival.model.modeling import UnivalForConditionalGeneration

__all__ = ["Hypothesis", "prompt_prefix", "search"]


@torch.inference_mode()
def search(
    model: UnivalForConditionalGeneration,
    inputs: Mapping[str, Tensor],
    options: SearchOptions | None = None,
    trie: AnswerTrie | None = None,
    prefix: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Return up to `options.beam` hypotheses per row, best first; a row has none when nothing may be written.

    Args:
        model: In evaluation mode.
        inputs: `input_ids`, `attention_mask`, and the media inputs of `UnivalEncoder.forward`.
        options: By default the original's.
        trie: Closed set of answers: nothing else is written. Excludes `options.constraint_range`.
        prefix: (B, P) ids, right-padded, without `<s>`, that the answer follows. Part of tokens and scores. By
            default the prompt if `options.repeat_prompt`, else none.

    Raises:
        UserError: If options contradict each other or the vocabulary.
    """
    options = options or SearchOptions()
    if trie is not None and options.constraint_range is not None:
        raise UserError("a closed set of answers and `constraint_range` exclude each other", "search options")
    if options.constraint_range is not None and options.constraint_range[1] > model.config.vocab_size:
        what = f"constraint_range ends at {options.constraint_range[1]}, the vocabulary at {model.config.vocab_size}"
        raise UserError(what, "search options", "give ids of the vocabulary")
    ids = inputs["input_ids"]
    limit = model.config.max_text_positions - 1  # `<s>` has a position as well
    max_len = options.max_len(ids.shape[1]) if options.gen_code else min(options.max_len(ids.shape[1]), limit)
    if options.min_len > max_len:
        raise UserError(f"min_len is {options.min_len}, above the longest length of {max_len}", "search options")
    if prefix is None and options.repeat_prompt:
        prefix = prompt_prefix(model, ids)
    num_beams = 1 if options.sampling else options.beam
    paths = Paths(num_beams, model.config.eos_token_id)
    if prefix is not None and options.sampling:
        prefix = prefix.repeat_interleave(options.beam, dim=0)
    rules = SearchRules(options, paths, max_len, model.config.pad_token_id, trie, prefix)
    length_penalty = 0.0 if options.unnormalized else options.lenpen
    collected = FirstToFinish(paths, len(ids), options.beam, length_penalty)
    model.generate(  # pyright: ignore[reportAttributeAccessIssue]  # its `self` asks for more than any model has
        **{"attention_mask": ids.ne(model.config.pad_token_id).long()} | dict(inputs),
        **generate_arguments(options, num_beams, length_penalty),
        max_new_tokens=max_len + 1,  # `</s>` counts
        logits_processor=[rules],
        stopping_criteria=[collected],
    )
    return [sorted(row, key=lambda hypothesis: -hypothesis.score) for row in collected.finished]


def generate_arguments(options: SearchOptions, num_beams: int, length_penalty: float) -> dict[str, Any]:
    """Return what `generate` does itself, and neutral values for what `SearchRules` does in the original's order.

    They are written out, as `generate` takes what is missing from the model's `generation_config.json`.
    """
    arguments = {
        "writes_codes": options.gen_code,
        "num_beams": num_beams,
        "do_sample": options.sampling,
        "num_return_sequences": options.beam if options.sampling else 1,
        "no_repeat_ngram_size": 0,
        "min_new_tokens": 0,  # and so `min_length`
        "repetition_penalty": 1.0,
    }
    if num_beams > 1:
        arguments |= {"early_stopping": True, "length_penalty": length_penalty}
    if options.sampling:
        arguments |= {"temperature": 1.0, "top_k": options.sampling_topk, "top_p": options.sampling_topp}
    return arguments


def prompt_prefix(model: UnivalForConditionalGeneration, input_ids: Tensor) -> Tensor:
    """Return prompts (B, L) without `<s>` and `</s>`, right-padded (B, L - 1): what a decoder prompt repeats."""
    rest = input_ids[:, 1:]
    return rest.masked_fill(rest.eq(model.config.eos_token_id), model.config.pad_token_id)
