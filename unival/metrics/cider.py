"""CIDEr-D, the consensus of a caption with its references (Vedantam et al. 2015, arXiv:1411.5726).

Cosine similarity of tf-idf vectors of n-grams, n = 1 to 4, with counts clipped to the reference and a
gaussian penalty on the length difference; mean over n and over references, times 10. `pycocoevalcap` calls
this Cider.

The reference side does not change while a model trains, so `CiderD` computes it once and is cheap enough to
be a reward; `cider_d` keeps the scorers of the last corpora, on which every checkpoint and every point of a
sweep is scored. Captions are split on whitespace.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unival.atomic import write_json
from unival.errors import UserError
from unival.metrics.ngram import Ngram, count_ngrams
from unival.metrics.score import Score, check_references, mean_score
from unival.pickles.machine import Machine

MAX_N = 4
SIGMA = 6.0
MAX_PICKLE_OPERATIONS = 100_000_000  # 12 per n-gram, of which COCO has 2 million


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many documents each n-gram occurs; a document is all the references of one sample.

    Attributes:
        counts: n-gram (a tuple of 1 to 4 words) to the number of documents that contain it.
        num_documents: the number of documents counted. With one document every idf, hence every score, is 0.
    """

    counts: Mapping[Ngram, int]
    num_documents: int

    def __post_init__(self) -> None:
        """Reject counts that would give an infinite or negative idf."""
        most = max(self.counts.values(), default=0)
        if self.num_documents < 1 or most > self.num_documents:
            what = f"document frequencies claim an n-gram in {most} of {self.num_documents} documents"
            raise UserError(what, fix="count again with DocumentFrequencies.from_references")

    @classmethod
    def from_references(cls, references: Sequence[Sequence[str]]) -> "DocumentFrequencies":
        """Count over a corpus: one inner sequence of captions per sample.

        Raises:
            UserError: no sample, or a sample without captions or given as a bare string.
        """
        if not references:
            raise UserError("no references to count", fix="pass one list of captions per sample")
        check_references([""] * len(references), references)
        counts: Counter[Ngram] = Counter()
        for captions in references:
            counts.update({ngram for caption in captions for ngram in count_ngrams(caption.split(), MAX_N)})
        return cls(dict(counts), len(references))

    def save(self, path: str | Path) -> None:
        """Write `{"num_documents": 2, "counts": {"a cat": 1, ...}}` as JSON, replacing the target at once."""
        counts = {" ".join(ngram): count for ngram, count in sorted(self.counts.items())}
        write_json(path, {"num_documents": self.num_documents, "counts": counts})

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequencies":
        """Read what `save` wrote, or a cached file of the original (`coco-valid-words.p`; nothing in it is run).

        Raises:
            UserError: no such file, or not document frequencies.
        """
        fix = "write it with DocumentFrequencies.from_references(references).save(path)"
        try:
            if Path(path).suffix in {".p", ".pkl"}:
                with Path(path).open("rb") as file:
                    data = Machine(str(path), max_operations=MAX_PICKLE_OPERATIONS).load(file)
                counts = {ngram: round(count) for ngram, count in data["document_frequency"].items() if count}
                return cls(counts, round(data["ref_len"]))
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            counts = {tuple(key.split(" ")): int(count) for key, count in data["counts"].items()}
            return cls(counts, int(data["num_documents"]))
        except FileNotFoundError as error:
            raise UserError("no such document-frequency file", where=str(path), fix=fix) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError("not a document-frequency file", where=str(path), fix=fix) from error


class _ReferenceVectors(NamedTuple):
    """The references of one sample; slot = 4 * reference + (n - 1)."""

    weights: dict[Ngram, list[tuple[int, float]]]  # n-gram -> (slot, tf-idf) where a reference has it
    norms: list[float]  # slot -> euclidean norm
    lengths: list[int]  # reference -> number of words


class CiderD:
    """CIDEr-D against fixed references.

    Args:
        references: one sequence of captions per sample, at least one caption each. Their tf-idf vectors are
            kept, about 30 kB per sample of 5 captions of 10 words: for a large training set pass `()` and
            `document_frequencies`, and give the references of each batch to `score`.
        document_frequencies: counted on `references` if not given. Only scores that share them are
            comparable.
        sigma: width of the length penalty, in words.

    Example:
        >>> cider = CiderD([["a cat on a mat", "a cat"], ["a dog runs"]])
        >>> cider.score(["a cat on a mat", "a cat"]).round(3).tolist()
        [6.188, 0.0]
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        document_frequencies: DocumentFrequencies | None = None,
        *,
        sigma: float = SIGMA,
    ) -> None:
        if sigma <= 0:
            raise UserError(f"sigma is {sigma}", fix="give a positive number of words; the metric uses 6")
        check_references([""] * len(references), references)
        self.document_frequencies = document_frequencies or DocumentFrequencies.from_references(references)
        self.sigma = sigma
        self._unseen_idf = math.log(self.document_frequencies.num_documents)
        self._idf = {
            ngram: self._unseen_idf - math.log(max(1, count))
            for ngram, count in self.document_frequencies.counts.items()
        }
        self._fitted: dict[tuple[str, ...], _ReferenceVectors] = {}
        self._samples = [self._fit(tuple(captions)) for captions in references]

    def score(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]] | None = None
    ) -> NDArray[np.float64]:
        """Score each prediction against its references.

        Args:
            predictions: one caption per sample.
            references: one sequence of captions per prediction; those seen at construction are looked up, the
                others are computed once a call and not kept. By default the references of the constructor, in order.

        Returns:
            float64 of shape (samples,), between 0 and 10.

        Raises:
            UserError: the numbers of predictions and of samples differ, or a sample has no reference.
        """
        if references is None:
            samples = self._samples
            if len(predictions) != len(samples):
                what = f"{len(predictions)} predictions but references of {len(samples)} samples"
                raise UserError(what, fix="pass one prediction per sample, or give the references to score()")
        else:
            check_references(predictions, references)
            keys = [tuple(captions) for captions in references]
            vectors = {key: self._lookup(key) for key in dict.fromkeys(keys)}  # one for all samples of an example
            samples = [vectors[key] for key in keys]
        pairs = zip(predictions, samples, strict=True)
        return np.array([self._similarity(text, vectors) for text, vectors in pairs], dtype=np.float64)

    def _lookup(self, captions: tuple[str, ...]) -> _ReferenceVectors:
        return self._fitted.get(captions) or self._vectors(captions)

    def _fit(self, captions: tuple[str, ...]) -> _ReferenceVectors:
        return self._fitted.setdefault(captions, self._lookup(captions))

    def _vectors(self, captions: tuple[str, ...]) -> _ReferenceVectors:
        weights: dict[Ngram, list[tuple[int, float]]] = {}
        squares = [0.0] * (MAX_N * len(captions))
        lengths = []
        for index, caption in enumerate(captions):
            words = caption.split()
            lengths.append(len(words))
            for ngram, count in count_ngrams(words, MAX_N).items():
                weight = count * self._idf.get(ngram, self._unseen_idf)
                slot = MAX_N * index + len(ngram) - 1
                squares[slot] += weight * weight
                weights.setdefault(ngram, []).append((slot, weight))
        return _ReferenceVectors(weights, [math.sqrt(square) for square in squares], lengths)

    def _similarity(self, prediction: str, references: _ReferenceVectors) -> float:
        words = prediction.split()
        squares = [0.0] * MAX_N
        products = [0.0] * len(references.norms)
        for ngram, count in count_ngrams(words, MAX_N).items():
            weight = count * self._idf.get(ngram, self._unseen_idf)
            squares[len(ngram) - 1] += weight * weight
            for slot, reference_weight in references.weights.get(ngram, ()):
                clipped = weight if weight < reference_weight else reference_weight
                products[slot] += clipped * reference_weight
        norms = [math.sqrt(square) for square in squares]
        total = 0.0
        for index, reference_length in enumerate(references.lengths):
            delta = len(words) - reference_length
            penalty = math.exp(-(delta * delta) / (2 * self.sigma * self.sigma))
            for slot, norm in enumerate(norms, start=MAX_N * index):
                if products[slot] > 0:  # both norms are positive then
                    total += penalty * products[slot] / (norm * references.norms[slot])
        return 10.0 * total / len(products)


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    document_frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Score a corpus once; document frequencies come from `references` unless given.

    Raises:
        UserError: as `CiderD` and `CiderD.score`.
    """
    check_references(predictions, references)
    if not predictions:
        return mean_score(())
    if document_frequencies is not None:
        return mean_score(CiderD(references, document_frequencies).score(predictions))
    return mean_score(_scorer(tuple(tuple(captions) for captions in references)).score(predictions))


@lru_cache(maxsize=2)
def _scorer(references: tuple[tuple[str, ...], ...]) -> CiderD:
    return CiderD(references)
