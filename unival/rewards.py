"""Rewards: plain functions from predicted texts and task rows to one float64 per sample.

A record is a flat task row; each reward reads the fields it needs:

    {"uid": "7", "captions": ["a cat on a mat"], "objects": ["cat"], "answers": ["cat"], "box": [0, 0, 40,
    30]}

A reward is found by its function name; its keyword-only arguments are its parameters. Parameters that are
statistics of the data (`cider`, `vocabulary`) are fitted on the training records when they are not given:

    reward = get_reward("brevity", {"max_words": 12})
    reward = weighted_reward({"cider_d": 0.5, "name_recall": 0.5}, records=training_records)

The weighted sum is the multi-objective baseline (MORL) of rewarded soups (Ramé et al. 2023,
arXiv:2306.04488). A label after a colon tells two uses of one reward apart:

    weighted_reward({"iou:small": 0.5, "iou:large": 0.5}, {"iou:small": {"size": "small"}, "iou:large": ...})
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from unival.errors import UserError, did_you_mean
from unival.metrics import bleu, caption_match, rouge
from unival.metrics import iou as boxes
from unival.metrics import vqa_accuracy as vqa
from unival.metrics.cider import CiderD
from unival.metrics.score import check_pairs

Record = Mapping[str, Any]
Rewards = NDArray[np.float64]
Reward = Callable[[Sequence[Any], Sequence[Record]], Rewards]  # predictions: strings; for boxes also numbers
BoxPrediction = str | Sequence[float] | None

_NO_BOX = (0.0, 0.0, 0.0, 0.0)  # what unreadable text is taken for: an empty box overlaps nothing


def cider_d(predictions: Sequence[str], records: Sequence[Record], *, cider: CiderD) -> Rewards:
    """Score captions by CIDEr-D, 0 to 10, with the document frequencies of `cider`.

    References that `cider` was fitted on are looked up; others are computed at each call.
    """
    return cider.score(predictions, _captions(predictions, records))


def bleu1(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by sentence BLEU-1."""
    return _bleu(predictions, records, "bleu1")


def bleu4(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by sentence BLEU-4, unsmoothed: about 0 without a common 4-gram or below four words."""
    return _bleu(predictions, records, "bleu4")


def rouge_l(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score captions by ROUGE-L."""
    references = _captions(predictions, records)
    return rouge.rouge_l(predictions, references).per_sample if predictions else _empty()


def exact_match(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score 1 for a prediction that equals one of the captions up to whitespace."""
    references = _captions(predictions, records)
    return caption_match.exact_match(predictions, references).per_sample if predictions else _empty()


def name_recall(predictions: Sequence[str], records: Sequence[Record], *, vocabulary: Collection[str] = ()) -> Rewards:
    """Score the fraction of the record's objects that the caption names; see `caption_match.name_recall`."""
    names = _fields(predictions, records, "objects")
    pairs = zip(predictions, names, strict=True)
    return _array(caption_match.name_recall(text, own, vocabulary) for text, own in pairs)


def name_precision(predictions: Sequence[str], records: Sequence[Record], *, vocabulary: Collection[str]) -> Rewards:
    """Score the fraction of the names in the caption that are the record's objects; 0 if it names nothing."""
    names = _fields(predictions, records, "objects")
    pairs = zip(predictions, names, strict=True)
    return _array(caption_match.name_precision(text, own, vocabulary) for text, own in pairs)


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


def iou(
    predictions: Sequence[BoxPrediction],
    records: Sequence[Record],
    *,
    size: boxes.Size = "all",
    small_area_px: float = boxes.SMALL_AREA_PX,
    large_area_px: float = boxes.LARGE_AREA_PX,
    num_bins: int = 0,
) -> Rewards:
    """Score the IoU of a box in pixels, as text "x0,y0,x1,y1" or four numbers, or of position tokens.

    An unreadable text, None, or a reference that is not of `size` scores 0. Position tokens are read with `num_bins`
    and the `width` and `height` of the record.

    Raises:
        UserError: a text with position tokens, and `num_bins` is 0.
    """
    predicted, references = _boxes(predictions, records, num_bins)
    is_of_size = boxes.size_mask(references, size, small_area_px, large_area_px)
    return boxes.box_iou(predicted, references) * is_of_size


def box_accuracy(
    predictions: Sequence[BoxPrediction],
    records: Sequence[Record],
    *,
    threshold: float = 0.5,
    size: boxes.Size = "all",
    small_area_px: float = boxes.SMALL_AREA_PX,
    large_area_px: float = boxes.LARGE_AREA_PX,
    num_bins: int = 0,
) -> Rewards:
    """Score 1 for IoU >= `threshold` with a reference of `size`, the rewards of the grounding soups.

    Predictions and errors are those of `iou`.
    """
    predicted, references = _boxes(predictions, records, num_bins)
    if not predictions:
        return _empty()
    sizes = {"size": size, "small_area_px": small_area_px, "large_area_px": large_area_px}
    return boxes.box_accuracy(predicted, references, threshold, **sizes).per_sample


def vqa_accuracy(predictions: Sequence[str], records: Sequence[Record], *, types: Collection[str] = ()) -> Rewards:
    """Score an answer by the VQA rule against the record's answers.

    With `types`, an answer to a question of another `question_type` scores 0 and stays a sample, as with the sizes of
    `box_accuracy`: the rewards of all types add up to the accuracy.
    """
    if not predictions:
        return _empty()
    scores = vqa.vqa_accuracy(predictions, _fields(predictions, records, "answers")).per_sample
    if not types:
        return scores
    return scores * np.array([kind in types for kind in _fields(predictions, records, "question_type")])


def answer_bleu1(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score an answer by BLEU-1 against each of the record's answers, averaged (the VQA rewards of rewarded soups)."""
    pairs = zip(predictions, _fields(predictions, records, "answers"), strict=True)
    return _array(
        bleu.bleu([text] * len(answers), [[answer] for answer in answers])["bleu1"].per_sample.mean()
        for text, answers in pairs
    )


def fit_cider(records: Sequence[Record]) -> CiderD:
    """Fit CIDEr-D on the captions of training records."""
    return CiderD([_captions_of(record) for record in records])


def fit_vocabulary(records: Sequence[Record]) -> frozenset[str]:
    """Collect every object name of training records."""
    return frozenset(name for record in records for name in _field(record, "objects"))


REWARDS: dict[str, Callable[..., Rewards]] = {
    function.__name__: function
    for function in (
        cider_d,
        bleu1,
        bleu4,
        rouge_l,
        exact_match,
        name_recall,
        name_precision,
        brevity,
        length,
        iou,
        box_accuracy,
        vqa_accuracy,
        answer_bleu1,
    )
}
_FITS: dict[str, Callable[[Sequence[Record]], Any]] = {"cider": fit_cider, "vocabulary": fit_vocabulary}


def get_reward(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    records: Sequence[Record] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Reward:
    """Find a reward by its function name and bind its parameters.

    Args:
        name: a key of `REWARDS`, or `key:label`.
        params: values for keyword-only arguments of the function.
        records: training rows on which `cider` and `vocabulary` are fitted when `params` does not give them.
        given: values for the arguments that the function has and `params` does not give, such as `num_bins`.

    Raises:
        UserError: unknown reward or parameter (with the closest valid name), a parameter of the wrong type,
            or a parameter without a default that is neither given nor fitted.
    """
    key = name.split(":")[0]
    if key not in REWARDS:
        raise UserError(f"unknown reward {key!r}", fix=did_you_mean(key, REWARDS))
    function = REWARDS[key]
    signature = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    bound = dict(params or {})
    hints = get_type_hints(function)
    for key, value in bound.items():
        if key not in defaults:
            raise UserError(f"unknown parameter {key!r}", where=f"reward {name}", fix=did_you_mean(key, defaults))
        _check_type(name, key, value, hints[key])
    bound |= {key: value for key, value in (given or {}).items() if key in defaults and key not in bound}
    if records is not None:
        bound |= {key: _FITS[key](records) for key in defaults if key in _FITS and key not in bound}
    missing = [key for key, default in defaults.items() if default is inspect.Parameter.empty and key not in bound]
    if missing:
        fix = f"give params={{{missing[0]!r}: ...}}, or records to fit it on"
        raise UserError(f"parameter {missing[0]!r} is missing", where=f"reward {name}", fix=fix)
    return partial(function, **bound)


@dataclass(frozen=True)
class WeightedReward:
    """A weighted sum of rewards, itself a reward.

    Attributes:
        weights: By reward name.
        rewards: By reward name.
    """

    weights: Mapping[str, float]
    rewards: Mapping[str, Reward]

    def terms(self, predictions: Sequence[str], records: Sequence[Record]) -> dict[str, Rewards]:
        """Return each reward (samples,) by name, unweighted."""
        return {name: reward(predictions, records) for name, reward in self.rewards.items()}

    def total(self, terms: Mapping[str, Rewards]) -> Rewards:
        """Return the weighted sum (samples,) of terms."""
        return np.sum([weight * terms[name] for name, weight in self.weights.items()], axis=0)

    def __call__(self, predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
        """Return the weighted sum (samples,)."""
        return self.total(self.terms(predictions, records))


def weighted_reward(
    weights: Mapping[str, float],
    params: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    records: Sequence[Record] | None = None,
    given: Mapping[str, Any] | None = None,
) -> WeightedReward:
    """Build the weighted sum of rewards, e.g. {"cider_d": 0.5, "brevity": 0.5}; weights are used as given.

    Args:
        weights: reward name to a finite weight, not necessarily positive or summing to 1.
        params: reward name to its parameters.
        records: as `get_reward`.
        given: as `get_reward`.

    Raises:
        UserError: no reward, a weight that is not a finite number, parameters of a reward without a weight,
            or as `get_reward`.
    """
    if not weights:
        raise UserError("no reward in the weighted sum", fix=did_you_mean("", REWARDS))
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            what = f"weight {weight!r} is not a finite number"
            raise UserError(what, where=f"reward {name}", fix="give a number such as 0.5")
    own = dict(params or {})
    for name in own:
        if name not in weights:
            what = f"parameters of reward {name!r}, which has no weight"
            raise UserError(what, fix=did_you_mean(name, weights))
    rewards = {name: get_reward(name, own.get(name), records=records, given=given) for name in weights}
    return WeightedReward(dict(weights), rewards)


def _check_type(name: str, key: str, value: Any, hint: Any) -> None:
    """Check what a configuration file gets wrong: numbers, the scorer. The rest is left to the function."""
    expected = {int: (int,), float: (int, float)}.get(hint)
    if expected is not None and (isinstance(value, bool) or not isinstance(value, expected)):
        what = f"{key} is {value!r}, not {'a whole' if hint is int else 'a'} number"
        raise UserError(what, where=f"reward {name}", fix="write the number without quotes")
    if hint is CiderD and not isinstance(value, CiderD):
        what = f"{key} is a {type(value).__name__}"
        raise UserError(what, where=f"reward {name}", fix="pass a fitted CiderD")


def _bleu(predictions: Sequence[str], records: Sequence[Record], key: str) -> Rewards:
    references = _captions(predictions, records)
    return bleu.bleu(predictions, references)[key].per_sample if predictions else _empty()


def _boxes(predictions: Sequence[BoxPrediction], records: Sequence[Record], num_bins: int) -> tuple[Rewards, Rewards]:
    """Read predicted and reference boxes, both (samples, 4)."""
    references = _fields(predictions, records, "box")
    predicted = [_box(prediction, record, num_bins) for prediction, record in zip(predictions, records, strict=True)]
    return np.array(predicted).reshape(-1, 4), np.array(references, dtype=np.float64).reshape(-1, 4)


def _box(prediction: BoxPrediction, record: Record, num_bins: int) -> Sequence[float]:
    if not isinstance(prediction, str):
        return _NO_BOX if prediction is None else prediction
    if "<bin_" not in prediction:
        return boxes.parse_box(prediction) or _NO_BOX
    if not num_bins:  # would score 0 for every sample, unnoticed
        fix = "pass what the grounding task's parse() returns, or give num_bins"
        raise UserError("a box reward needs pixels, not position tokens", where=repr(prediction[:60]), fix=fix)
    from unival.model.tokenizer import text_to_box  # transformers: not for workers and captions

    return text_to_box(prediction, _field(record, "width"), _field(record, "height"), num_bins) or _NO_BOX


def _captions(predictions: Sequence[str], records: Sequence[Record]) -> list[list[str]]:
    check_pairs(predictions, records, "records")
    return [_captions_of(record) for record in records]


def _captions_of(record: Record) -> list[str]:
    """Read "captions", else the single "caption"."""
    return list(record["captions"]) if "captions" in record else [_field(record, "caption")]


def _fields(predictions: Sequence[object], records: Sequence[Record], key: str) -> list[Any]:
    check_pairs(predictions, records, "records")
    return [_field(record, key) for record in records]


def _field(record: Record, key: str) -> Any:
    if key not in record:
        fix = f"it has {', '.join(map(repr, record)) or 'nothing'}"
        raise UserError(f"record has no {key!r}", where=f"record {record.get('uid', '?')}", fix=fix)
    return record[key]


def _array(values: Any) -> Rewards:
    return np.array(list(values), dtype=np.float64)


def _empty() -> Rewards:
    return np.zeros(0)
