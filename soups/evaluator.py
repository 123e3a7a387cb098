"""The seam between a sweep and the model it scores: what an evaluator is, and how one is found by name."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from soups.digests import sha256
from soups.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch


MAX_PATH = 250  # characters; a longer text is no path


class Evaluator(Protocol):
    """A model under evaluation, held in memory for a whole sweep.

    It may also define ``samples()``, which returns one mapping of strings (such as the prompt and the output)
    per example worth showing, for the weights evaluated last.
    """

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the model; a sweep writes the weights of each point into them."""
        ...

    def evaluate(self) -> Mapping[str, Sequence[float]]:
        """Return the scores of the current weights: one list per metric, higher is better.

        Every list has one score per sample; their length and order are the same at every call.
        """
        ...


@runtime_checkable
class FileEvaluator(Protocol):
    """An evaluator that reads each mixture from disk: another program, or another framework.

    Slower than `Evaluator`, as every point is written to a temporary folder, and removed afterwards. It may
    define ``samples()`` too.
    """

    def evaluate_checkpoint(self, path: Path) -> Mapping[str, Sequence[float]]:
        """Return the scores of the checkpoint at ``path``, as ``Evaluator.evaluate`` does."""
        ...


def load_evaluator(spec: str, checkpoint_path: Path, args: Mapping[str, Any]) -> Evaluator | FileEvaluator:
    """Import ``module:function`` and call it with the first checkpoint and the arguments.

    The current folder is importable, as with ``python -m``.

    Raises:
        UserError: the name does not resolve, the arguments do not fit, or the result is no evaluator.
    """
    function = import_function(spec)
    check_args(spec, function, args)
    evaluator = function(checkpoint_path, **args)
    if isinstance(evaluator, FileEvaluator):
        return evaluator
    for name in ("state", "evaluate"):
        if not callable(getattr(evaluator, name, None)):
            raise UserError(
                f"{spec} returned {type(evaluator).__name__}, which has no method {name}()",
                where="--evaluator",
                fix="return an object with state() and evaluate(), see soups.evaluator.Evaluator",
            )
    return cast(Evaluator, evaluator)


def import_function(spec: str, where: str = "--evaluator") -> Callable[..., Any]:
    """Return what ``module:function`` names; the current folder is importable.

    Raises:
        UserError: it does not resolve to something callable.
    """
    module_name, _, function_name = spec.partition(":")
    if not (module_name and function_name):
        raise UserError(f"not the name of a function: {spec!r}", where=where, fix="give module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        fix = "check the name, and that its package is installed or in the current folder"
        raise UserError(f"cannot import {module_name!r}: {error}", where=where, fix=fix) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(
            f"{module_name!r} has no function {function_name!r}",
            where=where,
            fix=did_you_mean(function_name, names),
        )
    return function


def check_args(spec: str, function: Callable[..., object], args: Mapping[str, Any]) -> None:
    """Require a function to accept a checkpoint path and these arguments.

    Raises:
        UserError: names the arguments that it has.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature; the call itself will tell
        return
    try:
        signature.bind(Path(), **args)
    except TypeError as error:
        names = [p.name for p in list(signature.parameters.values())[1:]]
        raise UserError(
            f"{spec} cannot be called with these arguments: {error}",
            where="--arg",
            fix=f"its arguments are: {', '.join(names) or 'none'}",
        ) from error


def digests_of_files(args: Any) -> dict[str, str]:
    """Return the SHA-256 of every file that arguments name, at any depth, by path: scores are those of the content."""
    if isinstance(args, str):
        path = Path(args)
        return {args: sha256(path)} if 0 < len(args) < MAX_PATH and path.is_file() else {}
    values = args.values() if isinstance(args, Mapping) else args if isinstance(args, list | tuple) else ()
    return {path: digest for value in values for path, digest in digests_of_files(value).items()}


def checked_scores(scores: object, spec: str) -> dict[str, list[float]]:
    """Check what an evaluator returned and turn it into plain lists of floats.

    Raises:
        UserError: not a mapping of metrics to lists of finite numbers, all of the same length.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise UserError(
            f"evaluate() returned {type(scores).__name__}, not scores by metric",
            where=spec,
            fix="return {metric: [score of each sample, ...]}",
        )
    table: dict[str, list[float]] = {}
    for metric, values in scores.items():
        if str(metric) in table:
            raise UserError(f"two metrics are called {str(metric)!r}", where=spec, fix="give each a name of its own")
        try:
            if isinstance(values, str | bytes | Mapping):
                raise TypeError(type(values).__name__)
            table[str(metric)] = [_number(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"the scores of {metric!r} are not a list of numbers", where=spec, fix="one score per sample"
            ) from error
        broken = [index for index, value in enumerate(table[str(metric)]) if not isfinite(value)]
        if broken:
            raise UserError(
                f"{metric!r} of sample {broken[0]} is not finite ({len(broken)} such samples)",
                where=spec,
                fix="score such samples with a finite number, such as the worst score",
            )
        if not isfinite(sum(table[str(metric)])):
            raise UserError(f"the scores of {metric!r} have no finite mean", where=spec, fix="give smaller numbers")
    lengths = {metric: len(values) for metric, values in table.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise UserError(
            f"metrics need the same number of samples, at least one: {lengths}",
            where=spec,
            fix="return one score per sample for every metric",
        )
    return table


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):  # which float() would read
        raise TypeError(type(value).__name__)
    return float(value)


def checked_samples(evaluator: Evaluator | FileEvaluator) -> list[dict[str, str]]:
    """Return the examples to show for the current weights, as strings; none if the evaluator offers none."""
    samples = getattr(evaluator, "samples", None)
    if samples is None:
        return []
    given: list[Any] = list(samples() or ())
    if not all(isinstance(sample, Mapping) for sample in given):
        kinds = ", ".join(sorted({type(sample).__name__ for sample in given}))
        raise UserError(f"samples() gave {kinds}", fix="give mappings, such as {'prompt': ..., 'output': ...}")
    return [{str(key): str(value) for key, value in sample.items()} for sample in given]
