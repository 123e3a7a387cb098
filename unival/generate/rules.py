"""The original's rules for the next token, in the original's order (specification 8.1, steps 3 to 8)."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessor, NoRepeatNGramLogitsProcessor

from unival.generate.options import SearchOptions
from unival.generate.paths import Paths
from unival.generate.trie import AnswerTrie

UNK_ID = 3
NUM_SPECIAL = 4  # `<s> <pad> </s> <unk>`


class SearchRules(LogitsProcessor):
    """Turn logits into the log-probabilities that the original's search adds up.

    Args:
        options: Of the search.
        paths: Follows the beams.
        max_len: Tokens before the forced `</s>`.
        pad_id: Never written.
        trie: Closed set of answers, or None.
        prefix: (B, P) ids that every hypothesis starts with, right-padded; None for no prefix.
    """

    def __init__(
        self,
        options: SearchOptions,
        paths: Paths,
        max_len: int,
        pad_id: int,
        trie: AnswerTrie | None = None,
        prefix: Tensor | None = None,
    ) -> None:
        self.options, self.paths, self.max_len, self.trie = options, paths, max_len, trie
        self.pad_id, self.eos_id = pad_id, paths.eos_id
        self.prefix = None if prefix is None else prefix.repeat_interleave(paths.num_beams, dim=0)
        size = options.no_repeat_ngram_size
        self.block: Callable[..., Tensor] = (
            NoRepeatNGramLogitsProcessor(size) if size else lambda _, log_probs: log_probs
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return log-probabilities (B * K, V), -inf where a token may not follow.

        Args:
            input_ids: (B * K, T) beams, `<s>` first.
            scores: (B * K, V) logits or log-probabilities.
        """
        self.paths.advance(input_ids)
        step = input_ids.shape[1] - 1
        log_probs = self.normalised(scores)
        log_probs = self.with_prefix(log_probs, step)
        log_probs = log_probs.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # a copy, changed below
        log_probs[:, self.pad_id] = -torch.inf
        log_probs[:, UNK_ID] -= self.options.unkpen
        if self.options.gen_code and step < self.max_len:
            log_probs[:, :NUM_SPECIAL] = -torch.inf
        if step >= self.max_len:
            log_probs[:, : self.eos_id] = -torch.inf
            log_probs[:, self.eos_id + 1 :] = -torch.inf
        return self.close(self.block(input_ids, log_probs))

    def normalised(self, scores: Tensor) -> Tensor:
        """Apply the temperature, the softmax and, before it or after it, what may be written at all.

        Beam search of `transformers` hands over log-probabilities. They are not normalised once more where nothing
        changed them: that would cost time, and rounding that decides between equal tokens.
        """
        logits = scores if self.options.temperature == 1.0 else scores / self.options.temperature
        allowed = self.allowed(logits)
        is_normalised = self.paths.num_beams > 1 and self.options.temperature == 1.0
        if allowed is None:
            return logits if is_normalised else logits.log_softmax(-1)
        if self.options.zero_shot:
            return logits.log_softmax(-1).masked_fill(~allowed, -torch.inf)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def allowed(self, logits: Tensor) -> Tensor | None:
        """Return a mask, broadcastable to (B * K, V), of the trie or of the range; None when all may be written."""
        if self.trie is not None:
            return self.in_trie(logits, self.trie)
        if self.options.constraint_range is None:
            return None
        first, end = self.options.constraint_range
        ids = torch.arange(logits.shape[1], device=logits.device)
        return (ids < NUM_SPECIAL) | ((ids >= first) & (ids < end))

    def in_trie(self, logits: Tensor, trie: AnswerTrie) -> Tensor:
        """Return the mask (B * K, V) of the trie's children; all True while a prefix is forced."""
        rows, columns = [], []
        tokens, alive = self.paths.tokens.flatten(0, 1)[:, 1:].tolist(), self.paths.alive.flatten().tolist()
        lengths = [0] * len(tokens) if self.prefix is None else self.prefix.ne(self.pad_id).sum(1).tolist()
        mask = torch.zeros_like(logits, dtype=torch.bool)
        for row, (path, length) in enumerate(zip(tokens, lengths, strict=True)):
            if len(path) < length:
                mask[row] = True
            elif alive[row]:
                children = trie.children(path[length:])
                rows += [row] * len(children)
                columns += children
        mask[rows, columns] = True
        return mask

    def with_prefix(self, log_probs: Tensor, step: int) -> Tensor:
        """Force the prefix token of each row that has one at this step; elsewhere `min_len` forbids an early `</s>`."""
        if step < self.options.min_len:
            early = log_probs.clone()
            early[:, self.eos_id] = -torch.inf
        else:
            early = log_probs
        if self.prefix is None or step >= min(self.prefix.shape[1], self.max_len):
            return early
        token = self.prefix[:, step, None]  # B*K 1
        forced = torch.full_like(log_probs, -torch.inf).scatter_(1, token, log_probs.gather(1, token))
        return torch.where(token.ne(self.pad_id), forced, early)

    def close(self, log_probs: Tensor) -> Tensor:
        """Give beams that are not real no continuation; samples that have none get padding, as one must be drawn."""
        log_probs[~self.paths.alive.flatten()] = -torch.inf
        self.paths.log_probs = log_probs
        if self.paths.num_beams > 1:
            return log_probs
        drawn = log_probs.clone()
        drawn[log_probs.isneginf().all(1), self.pad_id] = 0.0
        return drawn
