"""One tensor of the result from those of the models, as its action says: with torch, or with numpy where that does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from soups.errors import UserError
from soups.methods import Place, get_method
from soups.recipes.policies import Action, Part
from soups.sources.info import DTYPES
from soups.state import Checkpoint

if TYPE_CHECKING:
    import torch

    from soups.engine.arrays import Raw
    from soups.methods import Method

WIDE_DTYPES = {"F64", "F32", "F16", "BF16"}  # those of soups.engine.arrays, which is not imported before it is needed


def is_new(part: Part, method: Method) -> bool:
    """Say whether one model adds these rows to the base: there is no task vector, and they are copied."""
    return method.base == "required" and not part.has_base


def compute_into(
    out: torch.Tensor,
    name: str,
    action: Action,
    readers: Sequence[Callable[[str], torch.Tensor]],
    read_base: Callable[[str], torch.Tensor] | None,
    method: Method,
    digests: Sequence[str],
) -> None:
    """Write one tensor of the result into ``out``, of the shape and dtype of ``action.info``.

    Models are summed in the order of their digests: sums of three terms depend on the order, and the same models
    given in another order must give the same bytes.

    Args:
        out: receives the result.
        name: the tensor.
        action: how it is made; not ``tied``, whose source the caller copies.
        readers: per model, a function from a name to its tensor.
        read_base: the same for the base.
        method: the method.
        digests: per model, the digest of its weights.
    """
    if action.how in ("agree", "max"):
        tensors = [readers[index](name) for index in action.parts[0].models]
        out.copy_(_agreed(name, tensors) if action.how == "agree" else _largest(tensors))
        return
    for part in action.parts:
        order = sorted(range(len(part.models)), key=lambda place: digests[part.models[place]])
        rows = ... if part.stop is None else slice(part.start, part.stop)
        models = [readers[part.models[place]](name)[rows] for place in order]
        weights = [part.weights[place] for place in order]
        if action.how == "copy" or (action.how == "merge" and is_new(part, method)):
            out[rows].copy_(models[0])
        elif action.how == "linear":
            get_method("linear", {"extrapolate": True}).merge_into(out[rows], models, _normalized(weights))
        else:
            base = read_base(name)[rows] if read_base is not None and part.has_base else None
            place = Place(name, [digests[part.models[place]] for place in order])
            method.merge_into(out[rows], models, weights, base, place)


def raw_of(
    name: str, action: Action, method: Method, models: Sequence[Checkpoint], has_base: bool
) -> Callable[[Raw, Sequence[Raw]], None] | None:
    """Return what `compute_into` does to stored entries, with numpy alone; None where that does not suffice.

    Args:
        name: the tensor.
        action: how it is made, of one part.
        method: the method.
        models: those that the action uses, in the order in which their entries will be given, before the base's.
        has_base: whether the entries of the base come last.
    """
    if len(action.parts) != 1:
        return None
    (part,) = action.parts
    if action.how == "agree":
        return lambda out, inputs: _agreed_raw(name, out, inputs)
    if action.how == "max":
        return _largest_raw
    dtypes = {action.info.dtype} | {model.infos[name].dtype for model in models}
    if action.how == "copy" or (action.how == "merge" and is_new(part, method)):
        return (lambda out, inputs: _copied(out, inputs[0])) if len(models) == len(dtypes) == 1 else None
    if action.how not in ("merge", "linear") or not dtypes <= WIDE_DTYPES:
        return None
    is_linear = action.how == "linear"
    used = get_method("linear", {"extrapolate": True}) if is_linear else method
    if not used.takes_arrays:
        return None

    def run(out: Raw, inputs: Sequence[Raw]) -> None:
        order = sorted(range(len(models)), key=lambda place: models[place].digest) if len(models) > 2 else [0, 1]
        order = order[: len(models)]
        weights = [part.weights[place] for place in order]
        base = inputs[-1] if has_base else None
        used.merge_raw(out, [inputs[i] for i in order], _normalized(weights) if is_linear else weights, base)

    return run


def _copied(out: Raw, given: Raw) -> None:
    out.data[:] = given.data


def _agreed_raw(name: str, out: Raw, inputs: Sequence[Raw]) -> None:
    if any((inputs[0].data != other.data).any() for other in inputs[1:]):
        raise disagree(name)
    _copied(out, inputs[0])


def _largest_raw(out: Raw, inputs: Sequence[Raw]) -> None:
    import numpy as np

    dtype = DTYPES[out.dtype][0]
    largest = out.data.view(dtype)
    largest[:] = inputs[0].data.view(dtype)
    for other in inputs[1:]:
        np.maximum(largest, other.data.view(dtype), out=largest)


def _normalized(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total if total else 1 / len(weights) for weight in weights]


def _agreed(name: str, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    if any(not tensors[0].equal(other) for other in tensors[1:]):
        raise disagree(name)
    return tensors[0]


def disagree(name: str) -> UserError:
    """Return the error about an integer tensor that the models have not in common."""
    return UserError(
        f"integer tensor {name!r} differs between the models",
        fix="say which it shall be: --integers first, max or from:NAME",
    )


def _largest(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    largest = tensors[0]
    for other in tensors[1:]:
        largest = largest.where(largest >= other, other)
    return largest
