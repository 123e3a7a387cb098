"""Follow the beams of `generate` from outside: which of them are real, and the log-probability of each token.

`transformers` keeps only summed scores, and fills a beam that has no continuation left with a copy of low score. Both
matter here: the original counts real hypotheses only, and ends a sentence with the first `beam` that finish.

Shapes: B sentences, K beams per sentence, C candidates per sentence (2K before the best K are kept), T tokens, V ids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import StoppingCriteria


@dataclass(slots=True)
class Hypothesis:
    """A finished sequence.

    Attributes:
        tokens: Ids without `<s>`, with the final `</s>`; a forced prefix is part of them.
        score: Sum of `positional_scores`, divided by length**lenpen unless unnormalised.
        positional_scores: Log-probability of each token.
    """

    tokens: list[int]
    score: float
    positional_scores: list[float]


class Paths:
    """The beams of the running step.

    Attributes:
        tokens: (B, K, T) int64, `<s>` first.
        alive: (B, K) bool, False where a beam has no finite score or has ended.
        positional: (B, K, T - 1) float32 log-probabilities of the tokens after `<s>`.
        log_probs: (B * K, V) float32 of the next token.
    """

    def __init__(self, num_beams: int, eos_id: int) -> None:
        self.num_beams, self.eos_id = num_beams, eos_id
        self.log_probs: Tensor | None = None

    def advance(self, input_ids: Tensor) -> None:
        """Take over the beams (B * K, T) of the next step; at the first one only one beam per sentence is real."""
        tokens = input_ids.unflatten(0, (-1, self.num_beams))
        if self.log_probs is None:
            self.alive = torch.zeros_like(tokens[..., 0], dtype=torch.bool)
            self.alive[:, 0] = True
            self.positional = torch.zeros_like(tokens[..., 1:], dtype=torch.float32)
        else:
            alive, self.positional = self.follow(tokens)
            self.alive = alive & tokens[..., -1].ne(self.eos_id)
        self.tokens = tokens

    def follow(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return whether candidates (B, C, T + 1) go on from a real beam with a finite score, and scores (B, C, T).

        Candidates are sorted by score, so that of equal ones only the first is real: the others come from beams that
        are copies.
        """
        assert self.log_probs is not None
        is_parent = (candidates[:, :, None, :-1] == self.tokens[:, None]).all(-1) & self.alive[:, None]  # B C K
        parent, last = is_parent.int().argmax(-1), candidates[..., -1]
        rows = torch.arange(len(parent), device=parent.device)[:, None]
        score = self.log_probs.unflatten(0, (-1, self.num_beams))[rows, parent, last]
        alive = is_parent.any(-1) & score.isfinite()
        is_same = (parent[:, :, None] == parent[:, None]) & (last[:, :, None] == last[:, None]) & alive[:, None]
        is_copy = is_same.tril(-1).any(-1)
        return alive & ~is_copy, torch.cat([self.positional[rows, parent], score[..., None]], dim=-1)


class FirstToFinish(StoppingCriteria):
    """Collect the hypotheses of each sentence by the original's rule; never stops anything itself.

    Of the first `beam` candidates of a step, best first, those that end with `</s>` are finished, until the sentence
    has `beam` of them. `transformers` ends a sentence at the same step, but would let a later one replace a worse one.
    """

    def __init__(self, paths: Paths, num_sentences: int, limit: int, length_penalty: float) -> None:
        self.paths, self.limit, self.length_penalty = paths, limit, length_penalty
        self.finished: list[list[Hypothesis]] = [[] for _ in range(num_sentences)]

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:  # pyright: ignore
        """Look at the candidates (B * C, T + 1) of a step."""
        candidates = input_ids.unflatten(0, (len(self.paths.tokens), -1))
        alive, positional = self.paths.follow(candidates)
        ends = alive & candidates[..., -1].eq(self.paths.eos_id)
        for row, rank in ends[:, : self.paths.num_beams].nonzero().tolist():
            sentence = self.finished[row * len(self.finished) // len(candidates)]  # samples of one sentence are rows
            if len(sentence) < self.limit:
                values = positional[row, rank].tolist()
                tokens = candidates[row, rank, 1:].tolist()
                sentence.append(Hypothesis(tokens, sum(values) / len(values) ** self.length_penalty, values))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
