"""The result of a corpus metric: one value, and the score of every sample in the order it was given.

Per-sample scores are what sweeps store: paired bootstraps, fronts and disagreement tables are computed from
them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unival.errors import UserError


class Score(NamedTuple):
    """A corpus value and its samples.

    Attributes:
        value: the number to report; the mean of `per_sample` for every metric but BLEU, whose corpus value
            pools n-gram counts before dividing.
        per_sample: float64, shape (samples,).
    """

    value: float
    per_sample: NDArray[np.float64]


def mean_score(per_sample: ArrayLike) -> Score:
    """Average per-sample scores.

    Raises:
        UserError: there is no sample; the mean of nothing is not 0.
    """
    scores = np.asarray(per_sample, dtype=np.float64)
    if scores.size == 0:
        raise UserError("no sample to score", fix="pass at least one prediction and its references")
    return Score(float(scores.mean()), scores)


def check_pairs(predictions: Sequence[object], references: Sequence[object], name: str = "references") -> None:
    """Check that there is one entry of `references` per prediction, and that neither is a bare string.

    Raises:
        UserError: a string stands where a list belongs (its letters would be scored), or the lengths differ.
    """
    for label, values in (("predictions", predictions), (name, references)):
        if isinstance(values, str):
            fix = "pass a list, one entry per sample"
            raise UserError(f"{label} are one string", where=repr(values[:60]), fix=fix)
    if len(predictions) != len(references):
        what = f"{len(predictions)} predictions but {len(references)} {name}"
        raise UserError(what, fix="pass one entry per sample, in order")


def check_references(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Check that every prediction has its own non-empty list of references.

    Raises:
        UserError: as `check_pairs`, or a sample without references, or one whose references are a bare
            string.
    """
    check_pairs(predictions, references)
    for index, sample in enumerate(references):
        where = f"references[{index}]"
        if isinstance(sample, str):
            fix = "wrap a single reference in a list: [[...], [...]]"
            raise UserError("the references of a sample are one string", where=where, fix=fix)
        if not sample:
            raise UserError("a sample has no reference", where=where, fix="give one or drop the sample")
