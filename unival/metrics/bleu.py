"""BLEU-1 to BLEU-4 of a corpus and of each sentence (Papineni et al. 2002, aclanthology.org/P02-1040).

Equal to `pycocoevalcap`'s Bleu, closest reference length, including its constants: each precision is
(correct + 1e-15) / (guessed + 1e-9). A caption of fewer than n words has guessed no n-gram, which counts as a
precision of 1e-6: a perfect caption of three words has a BLEU-4 of 0.032, not 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unival.errors import UserError
from unival.metrics.ngram import Ngram, count_ngrams
from unival.metrics.score import Score, check_references

MAX_N = 4
_SMALL = 1e-9
_TINY = 1e-15


class _Counts(NamedTuple):
    correct: list[int]  # clipped matches, n = 1 to 4
    guessed: list[int]  # n-grams of the prediction
    num_words: int
    closest: int  # length of the reference whose length is closest; the shorter one on a tie


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Score]:
    """Score captions, split on whitespace.

    Args:
        predictions: one caption per sample.
        references: one non-empty sequence of captions per sample.

    Returns:
        "bleu1" to "bleu4". `value` is the corpus score (counts are pooled first), not the mean of the
        sentence scores in `per_sample`.

    Raises:
        UserError: lengths differ, no sample, or a sample without references.
    """
    check_references(predictions, references)
    if not predictions:
        raise UserError("no sample to score", fix="pass at least one prediction and its references")
    counts = [_count(text, captions) for text, captions in zip(predictions, references, strict=True)]
    correct = np.array([sample.correct for sample in counts], dtype=np.float64)
    guessed = np.array([sample.guessed for sample in counts], dtype=np.float64)
    lengths = np.array([(sample.num_words, sample.closest) for sample in counts], dtype=np.float64)
    per_sample = _scores(correct, guessed, lengths)
    corpus = _scores(*(total.sum(axis=0, keepdims=True) for total in (correct, guessed, lengths)))
    return {f"bleu{n + 1}": Score(float(corpus[0, n]), per_sample[:, n].copy()) for n in range(MAX_N)}


def _scores(
    correct: NDArray[np.float64], guessed: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Turn counts (rows, 4), (rows, 4) and lengths (rows, 2) into scores (rows, 4)."""
    precision = (correct + _TINY) / (guessed + _SMALL)
    geometric_mean = np.cumprod(precision, axis=1) ** (1 / np.arange(1, MAX_N + 1))
    ratio = (lengths[:, 0] + _TINY) / (lengths[:, 1] + _SMALL)
    brevity_penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return geometric_mean * brevity_penalty[:, None]


def _count(prediction: str, references: Sequence[str]) -> _Counts:
    words = prediction.split()
    most: dict[Ngram, int] = {}
    reference_lengths = []
    for reference in references:
        reference_words = reference.split()
        reference_lengths.append(len(reference_words))
        for ngram, count in count_ngrams(reference_words, MAX_N).items():
            if count > most.get(ngram, 0):
                most[ngram] = count
    correct = [0] * MAX_N
    for ngram, count in count_ngrams(words, MAX_N).items():
        correct[len(ngram) - 1] += min(count, most.get(ngram, 0))
    guessed = [max(0, len(words) - n) for n in range(MAX_N)]
    closest = min(reference_lengths, key=lambda length: (abs(length - len(words)), length))
    return _Counts(correct, guessed, len(words), closest)
