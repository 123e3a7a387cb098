"""Rewards: plain functions from predicted texts and task rows to one float64 per sample.

A record is a flat task row; each reward reads the fields it needs:

    {"uid": "7", "captions": ["a cat on a mat"], "objects": ["cat"], "answers": ["cat"], "box": [0, 0, 40, 30]}

A reward is found by its function name; its keyword-only arguments are its parameters. Parameters that are
statistics of the data (`cider`, `vocabulary`) are fitted on the training records when they are not given:

    reward = get_reward("brevity", {"max_words": 12})
    reward = weighted_reward({"cider_d": 0.5, "name_recall": 0.5}, records=training_records)

The weighted sum is the multi-objective baseline (MORL) of rewarded soups (Ramé et al. 2023,
arXiv:2306.04488). A label after a colon tells two uses of one reward apart:

    weighted_reward({"iou:small": 0.5, "iou:large": 0.5}, {"iou:small": {"size": "small"}, "iou:large": ...})

One of your own is named `module:function`; the current folder is importable, as with `python -m`. A reward of the
package needs no more than its file and a line in `REWARDS`. Whatever it reads from disk it reads when it is called,
also with no samples at all: that is how `check_rewards` finds what is missing before anything is trained.
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

import numpy as np

from unival.errors import UserError, did_you_mean
from unival.metrics.cider import CiderD
from unival.rewards.answer import answer_bleu1, vqa_accuracy
from unival.rewards.box import box_accuracy, iou
from unival.rewards.caption import (
    bleu1,
    bleu4,
    brevity,
    cider_d,
    exact_match,
    fit_cider,
    fit_vocabulary,
    length,
    meteor,
    name_precision,
    name_recall,
    rouge_l,
)
from unival.rewards.learned import ModelFolder, relevance, sentence_similarity
from unival.rewards.picture import clip_score
from unival.rewards.record import Record, Reward, Rewards

REWARDS: dict[str, Callable[..., Rewards]] = {
    function.__name__: function
    for function in (
        *(cider_d, bleu1, bleu4, rouge_l, meteor, exact_match, name_recall, name_precision, brevity, length),
        *(iou, box_accuracy, vqa_accuracy, answer_bleu1, sentence_similarity, relevance, clip_score),
    )
}
_FITS: dict[str, Callable[[Sequence[Record]], Any]] = {"cider": fit_cider, "vocabulary": fit_vocabulary}


class _Bound(NamedTuple):
    """A reward's function, the parameters that it has so far, and those that it still needs."""

    function: Callable[..., Rewards]
    params: dict[str, Any]
    missing: list[str]


def get_reward(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    records: Sequence[Record] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Reward:
    """Find a reward by its function name and bind its parameters.

    Args:
        name: a key of `REWARDS`, or `module:function`; either may end with `:label`.
        params: values for keyword-only arguments of the function.
        records: training rows on which `cider` and `vocabulary` are fitted when `params` does not give them.
        given: values for the arguments that the function has and `params` does not give, such as `num_bins`.

    Raises:
        UserError: unknown reward or parameter (with the closest valid name), a parameter of the wrong type, a path
            that is not there, or a parameter without a default that is neither given nor fitted.
    """
    function, bound, missing = _bind(name, params, given)
    if records is not None:
        bound |= {key: _FITS[key](records) for key in _parameters(function) if key in _FITS and key not in bound}
    _refuse_missing(name, [key for key in missing if key not in bound])
    return partial(function, **bound)


def check_rewards(
    weights: Mapping[str, float],
    params: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Check a weighted sum as far as that needs no data; networks are loaded, and kept for the training.

    Raises:
        UserError: as `weighted_reward`, or what a reward says that lacks a file or a program.
    """
    own = _checked_weights(weights, params)
    for name in weights:
        function, bound, missing = _bind(name, own.get(name), given)
        _refuse_missing(name, [key for key in missing if key not in _FITS])
        if not missing and is_known(name):
            function([], [], **bound)


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
        return {name: checked(name, reward(predictions, records), records) for name, reward in self.rewards.items()}

    def total(self, terms: Mapping[str, Rewards]) -> Rewards:
        """Return the weighted sum (samples,) of terms."""
        return np.sum([weight * terms[name] for name, weight in self.weights.items()], axis=0)

    def __call__(self, predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
        """Return the weighted sum (samples,)."""
        return self.total(self.terms(predictions, records))


def checked(name: str, rewards: Any, records: Sequence[Record]) -> Rewards:
    """Return what a reward gave as an array.

    Raises:
        UserError: It is not one finite number per sample.
    """
    try:
        rewards = np.asarray(rewards, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"it gave no numbers: {error}", f"reward {name}", "return one number per sample") from None
    if rewards.shape != (len(records),):
        what = f"it gave {rewards.shape} numbers for {len(records)} samples"
        raise UserError(what, f"reward {name}", "return one number per sample")
    broken = np.flatnonzero(~np.isfinite(rewards))
    if len(broken):
        row = dict(records[int(broken[0])]).get("uid", int(broken[0]))
        what = f"it gave {rewards[broken[0]]:g} for a sample of row {row} ({len(broken)} such samples)"
        raise UserError(what, f"reward {name}", "give such samples a finite number, such as the worst")
    return rewards


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
    own = _checked_weights(weights, params)
    rewards = {name: get_reward(name, own.get(name), records=records, given=given) for name in weights}
    return WeightedReward(dict(weights), rewards)


def _checked_weights(
    weights: Mapping[str, float], params: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Mapping[str, Any]]:
    """Check the weights and return the parameters by reward."""
    _require_mapping(weights, "rewards", "{cider_d: 1.0}")
    _require_mapping(params or {}, "reward_args", "{brevity: {max_words: 9}}")
    for name, own in (params or {}).items():
        _require_mapping(own, f"reward_args.{name}", "{max_words: 9}")
    if not weights:
        raise UserError("no reward in the weighted sum", fix=did_you_mean("", REWARDS))
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            what = f"weight {weight!r} is not a finite number"
            raise UserError(what, where=f"reward {name}", fix="give a number such as 0.5")
    for name in params or {}:
        if name not in weights:
            what = f"parameters of reward {name!r}, which has no weight"
            raise UserError(what, fix=did_you_mean(name, weights))
    return dict(params or {})


def _require_mapping(value: Any, what: str, example: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} is {value!r}", fix=f"write it as {example}")


def _parameters(function: Callable[..., Rewards]) -> dict[str, Any]:
    """Return the keyword-only arguments of a reward with their defaults."""
    signature = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}


def _bind(name: str, params: Mapping[str, Any] | None, given: Mapping[str, Any] | None) -> _Bound:
    """Find a reward and check what it is given."""
    key = name.split(":")[0]
    if is_known(name):
        function = REWARDS[key]
    elif ":" in name and "" not in name.split(":"):
        function = _own(name)
    else:
        raise UserError(f"unknown reward {key!r}", fix=f"{did_you_mean(key, REWARDS)}; or module:function of your own")
    defaults, hints = _parameters(function), get_type_hints(function)
    bound = dict(params or {})
    for key, value in bound.items():
        if key not in defaults:
            raise UserError(f"unknown parameter {key!r}", where=f"reward {name}", fix=did_you_mean(key, defaults))
        _check_type(name, key, value, hints.get(key))
    bound |= {key: value for key, value in (given or {}).items() if key in defaults and key not in bound}
    missing = [key for key, default in defaults.items() if default is inspect.Parameter.empty and key not in bound]
    return _Bound(function, bound, missing)


def is_known(name: str) -> bool:
    """Say whether a name is that of a reward of the package, with or without a label."""
    return name.split(":")[0] in REWARDS


def _own(name: str) -> Callable[..., Rewards]:
    """Import `module:function`; the current folder is importable.

    Raises:
        UserError: There is no such function, or it cannot be called with texts and records.
    """
    module, function, *_ = name.split(":")
    where = f"reward {name}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise UserError(
            f"unknown reward {module!r}, and no module of that name: {error}",
            where=where,
            fix=f"{did_you_mean(module, REWARDS)}; of your own: module:function, importable from the current folder",
        ) from error
    if not callable(found):
        raise UserError(f"module {module} has no function {function!r}", where=where, fix="give module:function")
    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    places = [p for p in inspect.signature(found).parameters.values() if p.kind in kinds]
    if len(places) < 2 or any(p.default is p.empty for p in places[2:]):
        fix = "def reward(predictions, records, *, parameter=1.0)"
        raise UserError(f"{function} does not take texts and records", where=where, fix=fix)
    return cast("Callable[..., Rewards]", found)


def _refuse_missing(name: str, missing: Sequence[str]) -> None:
    if missing:
        fix = f"give params={{{missing[0]!r}: ...}}" + (", or records to fit it on" if missing[0] in _FITS else "")
        raise UserError(f"parameter {missing[0]!r} is missing", where=f"reward {name}", fix=fix)


def _check_type(name: str, key: str, value: Any, hint: Any) -> None:
    """Check what a configuration file gets wrong: numbers, paths, the scorer. The rest is left to the function."""
    where = f"reward {name}"
    expected = {int: (int,), float: (int, float)}.get(hint)
    if expected is not None and (isinstance(value, bool) or not isinstance(value, expected)):
        what = f"{key} is {value!r}, not {'a whole' if hint is int else 'a'} number"
        raise UserError(what, where=where, fix="write the number without quotes")
    if hint is CiderD and not isinstance(value, CiderD):
        what = f"{key} is a {type(value).__name__}"
        raise UserError(what, where=where, fix="pass a fitted CiderD")
    if hint is ModelFolder and not any(Path(str(value), file).is_file() for file in ("config.json", "model.onnx")):
        fix = "give a local folder of transformers, with config.json, weights and tokenizer; nothing is downloaded"
        raise UserError(f"{key}: no model in {str(value)!r}", where=where, fix=fix)
    if hint is Path and not Path(str(value)).exists():
        raise UserError(f"{key}: no such file or folder: {value}", where=where, fix="nothing is downloaded")


__all__ = [
    "REWARDS",
    "Record",
    "Reward",
    "Rewards",
    "WeightedReward",
    "check_rewards",
    "fit_cider",
    "fit_vocabulary",
    "get_reward",
    "weighted_reward",
]
