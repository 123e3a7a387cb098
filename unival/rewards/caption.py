"""Rewards of captions that need no model: n-grams, names, length, and METEOR through its authors' program."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from unival.errors import UserError
from unival.metrics import bleu, caption_match, rouge
from unival.metrics.cider import CiderD
from unival.metrics.java_scores import Meteor
from unival.metrics.score import check_pairs
from unival.rewards.record import Record, Rewards, array, captions, captions_of, empty, field, fields


def cider_d(predictions: Sequence[str], records: Sequence[Record], *, cider: CiderD) -> Rewards:
    """Score captions by CIDEr-D, 0 to 10, with the document frequencies of `cider`.

    References that `cider` was fitted on are looked up; others are computed at each call.
    """
    return cider.score(predictions, captions(predictions, records))


def bleu1(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by sentence BLEU-1."""
    return _bleu(predictions, records, "bleu1")


def bleu4(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by sentence BLEU-4, unsmoothed: about 0 without a common 4-gram or below four words."""
    return _bleu(predictions, records, "bleu4")


def rouge_l(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by ROUGE-L."""
    references = captions(predictions, records)
    return rouge.rouge_l(predictions, references).per_sample if predictions else empty()


def meteor(
    predictions: Sequence[str], records: Sequence[Record], *, jar: Path | None = None, java: str = "java"
) -> Rewards:
    """Score captions by METEOR 1.5, 0 to 1; the program is started once and answers until the process ends.

    Raises:
        UserError: Java or the jar (`pip install "unival[coco-java]"`) is missing, also for no captions at all.
    """
    program = _meteor(jar, java)
    references = captions(predictions, records)
    return program.score(predictions, references).per_sample if predictions else empty()


@lru_cache(maxsize=1)
def _meteor(jar: Path | None, java: str) -> Meteor:
    return Meteor(jar, java)


def exact_match(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score 1 for a prediction that equals one of the captions up to whitespace."""
    references = captions(predictions, records)
    return caption_match.exact_match(predictions, references).per_sample if predictions else empty()


def name_recall(predictions: Sequence[str], records: Sequence[Record], *, vocabulary: Collection[str] = ()) -> Rewards:
    """Score the fraction of the record's objects that the caption names; see `caption_match.name_recall`."""
    names = fields(predictions, records, "objects")
    pairs = zip(predictions, names, strict=True)
    return array(caption_match.name_recall(text, own, vocabulary) for text, own in pairs)


def name_precision(predictions: Sequence[str], records: Sequence[Record], *, vocabulary: Collection[str]) -> Rewards:
    """Score the fraction of the names in the caption that are the record's objects; 0 if it names nothing."""
    names = fields(predictions, records, "objects")
    pairs = zip(predictions, names, strict=True)
    return array(caption_match.name_precision(text, own, vocabulary) for text, own in pairs)


def brevity(
    predictions: Sequence[str], records: Sequence[Record], *, min_words: int = 4, max_words: int = 12
) -> Rewards:
    """Score 1 up to `min_words` words, falling linearly to 0 at `max_words`; an empty prediction scores 0.

    Raises:
        UserError: not 0 < min_words < max_words.
    """
    if not 0 < min_words < max_words:
        what = f"min_words is {min_words}, max_words {max_words}"
        raise UserError(what, where="reward brevity", fix="give 0 < min_words < max_words")
    check_pairs(predictions, records, "records")
    num_words = np.array([len(text.split()) for text in predictions], dtype=np.float64)
    return np.clip((max_words - num_words) / (max_words - min_words), 0.0, 1.0) * (num_words > 0)


def length(predictions: Sequence[str], records: Sequence[Record], *, words: int = 10) -> Rewards:
    """Score 1 at exactly `words` words, falling linearly to 0 at none and at twice as many.

    Raises:
        UserError: `words` is not positive.
    """
    if words < 1:
        raise UserError(f"words is {words}", where="reward length", fix="give a positive number of words")
    check_pairs(predictions, records, "records")
    num_words = np.array([len(text.split()) for text in predictions], dtype=np.float64)
    return np.maximum(0.0, 1.0 - np.abs(num_words - words) / words)


def fit_cider(records: Sequence[Record]) -> CiderD:
    """Fit CIDEr-D on the captions of training records."""
    return CiderD([captions_of(record) for record in records])


def fit_vocabulary(records: Sequence[Record]) -> frozenset[str]:
    """Collect every object name of training records."""
    return frozenset(name for record in records for name in field(record, "objects"))


def _bleu(predictions: Sequence[str], records: Sequence[Record], key: str) -> Rewards:
    references = captions(predictions, records)
    return bleu.bleu(predictions, references)[key].per_sample if predictions else empty()
