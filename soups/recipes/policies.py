"""What to do where models differ: the plan of every tensor of the result, made from headers alone.

Strict by default: names, shapes and dtypes agree, integers are equal. Every exception is asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal

from soups.batch_norm import is_counter, is_statistic
from soups.errors import UserError
from soups.methods._weights import SUM_TOLERANCE, one_hot
from soups.recipes.coefficients import Rule, matching, resolve_weights
from soups.sources.info import TensorInfo
from soups.state import MAX_LISTED, Checkpoint, check_compatible
from soups.ties import copied_names

if TYPE_CHECKING:
    from soups.methods import Method

Owners = Literal["error", "owners", "common"]
FROM = "from:"
PACKED = ("I8", "U8", "I32")  # what bitsandbytes, GPTQ and AWQ store numbers in
AFTER_NAME = ("_scale", "_scale_inv", ".absmax")
BESIDE_NAME = ("weight_scale", "scale_weight", "SCB", "scale", "scales")


@dataclass(frozen=True)
class Policies:
    """How to treat what cannot simply be merged.

    Attributes:
        batch_norm: running means and variances: ``merge``, as any other tensor; ``interpolate``, linearly,
            whatever the method; ``auto``, the first, and the second for methods that trim and rescale, which would give
            negative variances; ``from:NAME``, the counter too; ``recompute``, with a pass over data.
        recompute: ``module:function`` for that pass, see ``soups.batch_norm.recomputed``.
        recompute_args: its arguments.
        keys: tensors that only some models have: ``error``; ``owners``, merge those that have it, coefficients
            rescaled to the same sum; ``common``, leave them out.
        vocabulary: pattern to ``owners`` or ``common``, for tensors that differ in the number of rows: the rows
            that some models lack are merged among those that have them, or left out.
        tied: groups of names that hold the same tensor: computed once, under the first name. Names that share
            their memory in the files of all models are tied without being asked for; that they do in some of the
            models only is an error, unless they are named here or in ``untied``.
        untied: groups of names that are merged each by itself, whether they share their memory or not.
        dtype: of the floating-point tensors of the result, such as ``BF16``; as stored by default. Given, the
            dtypes of the models may differ.
    """

    batch_norm: str = "auto"
    recompute: str = ""
    recompute_args: Mapping[str, Any] = field(default_factory=dict)
    keys: Owners = "error"
    vocabulary: Mapping[str, Owners] = field(default_factory=dict)
    tied: Sequence[Sequence[str]] = ()
    untied: Sequence[Sequence[str]] = ()
    dtype: str | None = None

    def described(self) -> dict[str, Any]:
        """Return all fields for keys and records; one that came later is left out where it says nothing new."""
        return {name: value for name, value in asdict(self).items() if name != "untied" or value}


@dataclass(frozen=True)
class Part:
    """Rows of a tensor, and the models that are merged there.

    Attributes:
        start: first row.
        stop: the row after the last; None for a whole tensor, which may have no rows.
        models: indices of the models.
        weights: their coefficients.
        has_base: whether the base has these rows.
    """

    start: int
    stop: int | None
    models: tuple[int, ...]
    weights: tuple[float, ...]
    has_base: bool


@dataclass(frozen=True)
class Action:
    """How one tensor of the result is made.

    Attributes:
        info: its dtype and shape.
        weights: the coefficient of every model.
        how: ``merge``, with the method; ``linear``; ``copy``, from the first model of each part; ``agree``, the
            same if all models are equal, else an error; ``max``, the largest entries; ``tied``, a copy of ``source``.
        parts: the rows, in order.
        why: the policy that decided, empty for the rule.
        source: the name of the tensor that this one is tied to.
    """

    info: TensorInfo
    weights: tuple[float, ...]
    how: Literal["merge", "linear", "copy", "agree", "max", "tied"]
    parts: tuple[Part, ...]
    why: str = ""
    source: str | None = None


@dataclass(frozen=True)
class _Inputs:
    checkpoints: Sequence[Checkpoint]
    base: Checkpoint | None
    method: Method
    integers: str
    policies: Policies


def resolve(
    checkpoints: Sequence[Checkpoint],
    base: Checkpoint | None,
    method: Method,
    weights: Sequence[float],
    integers: str = "error",
    rules: Sequence[Rule] = (),
    policies: Policies | None = None,
) -> dict[str, Action]:
    """Return the action of every tensor of the result, by name; reads no data.

    Args:
        checkpoints: the models.
        base: their initialisation, if the method uses it.
        method: the method.
        weights: one coefficient per model.
        integers: integer and boolean tensors that differ: ``error``; ``first``, of the first model; ``max``, the
            largest entries; ``from:NAME``. With all the weight on one model, that model's.
        rules: coefficients of some tensors.
        policies: what else may differ.

    Raises:
        UserError: models differ where no policy permits it, a pattern matches nothing, or the method cannot
            take the coefficients of some tensor.
    """
    inputs = _Inputs(checkpoints, base, method, integers, policies or Policies())
    _check_policies(inputs)
    _refuse_scaled(inputs)
    everything = [*checkpoints, *([base] if base else [])]
    ties = (*inputs.policies.tied, *inputs.policies.untied)
    copies = copied_names(everything) - {name for group in ties for name in group}
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.infos} - copies)
    table = resolve_weights(weights, rules, names)
    for each in sorted(set(table.values())):
        method.check(each, has_base=base is not None)
    vocabulary = _vocabulary(inputs.policies, names)
    if inputs.policies.batch_norm not in ("auto", "merge") and not any(is_statistic(name) for name in names):
        raise UserError("no batch-norm statistics in these models", where="batch_norm", fix="remove the policy")
    if inputs.policies.keys != "error":
        _require_shared(checkpoints)
    if inputs.policies.keys == "error" and not vocabulary:
        any_dtype = inputs.policies.dtype is not None
        check_compatible(everything, any_dtype=any_dtype, ignored=copies)
    method.check_extras({name: info for checkpoint in checkpoints for name, info in checkpoint.infos.items()})
    actions: dict[str, Action] = {}
    for name in names:
        action = _action(inputs, name, table[name], vocabulary.get(name, "error"))
        if action is not None:
            actions[name] = action
    return _tie(actions, _tied(inputs, list(actions)))


def _require_shared(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse models without a common name: owners would put them side by side unmixed, common would leave nothing."""
    for one, other in permutations(checkpoints, 2):
        if not one.infos.keys().isdisjoint(other.infos):
            continue
        name = min(one.infos)
        prefix = next((found.removesuffix(name) for found in sorted(other.infos) if found.endswith(f".{name}")), "")
        hint = f"the names of {other.name!r} begin with {prefix!r}: save it without" if prefix else "are they one kind?"
        what = f"{one.name!r} and {other.name!r} have no tensor in common"
        raise UserError(what, where="policies: keys", fix=f"merge models of one architecture; {hint}")


def _check_policies(inputs: _Inputs) -> None:
    policies, names = inputs.policies, [checkpoint.name for checkpoint in inputs.checkpoints]
    for key, value, words in (
        ("integers", inputs.integers, ("error", "first", "max")),
        ("batch_norm", policies.batch_norm, ("auto", "merge", "interpolate", "recompute")),
    ):
        if value not in words and value.removeprefix(FROM) not in (names if value.startswith(FROM) else []):
            listed = ", ".join([*words, *(FROM + name for name in names)])
            raise UserError(f"unknown policy {value!r}", where=key, fix=f"choices: {listed}")
    if (policies.batch_norm == "recompute") != bool(policies.recompute):
        fix = "give both batch_norm: recompute and recompute: module:function, or neither"
        raise UserError("recomputing batch-norm statistics needs a function", where="policies", fix=fix)


def _refuse_scaled(inputs: _Inputs) -> None:
    """Refuse numbers that mean nothing without a scale of their own: the mean of such numbers is no mean of weights."""
    for checkpoint in (*inputs.checkpoints, *([inputs.base] if inputs.base else [])):
        for name, info in checkpoint.infos.items():
            if not info.dtype.startswith("F8") and info.dtype not in PACKED:
                continue
            beside = name.rpartition(".")[0]
            scales = (*(f"{name}{end}" for end in AFTER_NAME), *(f"{beside}.{end}" for end in BESIDE_NAME))
            scale = next((scale for scale in scales if scale in checkpoint.infos), None)
            if scale is not None:
                raise UserError(
                    f"{name!r} of {checkpoint.name!r} is quantised: {info.dtype}, to be multiplied by {scale!r}",
                    where=str(checkpoint.path),
                    fix="dequantise the models first: save them in bfloat16 or float32, without the scales",
                )


def _vocabulary(policies: Policies, names: Sequence[str]) -> dict[str, Owners]:
    found: dict[str, Owners] = {}
    for pattern, policy in policies.vocabulary.items():
        found |= dict.fromkeys(matching(pattern, names, "policies: vocabulary"), policy)
    return found


def _action(inputs: _Inputs, name: str, weights: tuple[float, ...], vocabulary: Owners) -> Action | None:
    """Return the action of one tensor, or None if it is left out."""
    owners = [index for index, checkpoint in enumerate(inputs.checkpoints) if name in checkpoint.infos]
    is_shared = len(owners) == len(inputs.checkpoints)
    if not is_shared and inputs.policies.keys == "error":
        _refuse_missing(inputs, name)
    chosen = [index for index in owners if weights[index] != 0] or (owners if not any(weights) else [])
    if not chosen or (not is_shared and inputs.policies.keys == "common" and one_hot(weights) is None):
        return None
    first = inputs.checkpoints[chosen[0]].infos[name]
    how, source, why = _decide(inputs, name, first, weights)
    if source is not None:
        stored = inputs.checkpoints[source].infos.get(name)
        if stored is None:
            what = f"{name!r} is not in {inputs.checkpoints[source].name!r}, which a policy names"
            raise UserError(what, where=f"policies: {why}", fix="choose another model")
        return Action(stored, weights, "copy", (Part(0, None, (source,), (1.0,), False),), why)
    models = owners if how == "agree" else chosen
    infos = {index: inputs.checkpoints[index].infos[name] for index in models}
    _check_infos(inputs, name, infos, vocabulary if first.is_float else "error")
    if not first.is_float:
        return Action(first, weights, how, (Part(0, None, tuple(models), (1.0,) * len(models), False),), why)
    best = min if vocabulary == "common" else max
    info = best(infos.values(), key=lambda info: info.shape[:1])
    if inputs.policies.dtype:
        info = replace(info, dtype=inputs.policies.dtype)
    parts = _parts(inputs, name, infos, weights, info)
    if not is_shared or vocabulary != "error":
        why = ", ".join([*([why] if why else []), vocabulary if is_shared else inputs.policies.keys])
    return Action(info, weights, how, parts, why)


def _decide(inputs: _Inputs, name: str, info: TensorInfo, weights: Sequence[float]) -> tuple[Any, int | None, str]:
    """Return how a tensor is made, the model it is copied from if any, and the policy that says so."""
    policy = inputs.policies.batch_norm
    names = [checkpoint.name for checkpoint in inputs.checkpoints]
    if policy.startswith(FROM) and (is_statistic(name) or is_counter(name)):
        return "copy", names.index(policy.removeprefix(FROM)), f"batch norm {policy}"
    if info.is_float:
        trims = policy == "auto" and bool(inputs.method.exact_params)
        if is_statistic(name) and (trims or policy not in ("auto", "merge")):
            return "linear", None, f"batch norm {'interpolate' if trims else policy}"
        return "merge", None, ""
    endpoint, why = one_hot(weights), f"integers {inputs.integers}"
    if endpoint is not None:
        return "copy", endpoint, why
    if inputs.integers == "error":
        return "agree", None, why
    if inputs.integers.startswith(FROM):
        return "copy", names.index(inputs.integers.removeprefix(FROM)), why
    if inputs.integers == "max":
        return "max", None, why
    return "copy", next(i for i, checkpoint in enumerate(inputs.checkpoints) if name in checkpoint.infos), why


def _check_infos(inputs: _Inputs, name: str, infos: Mapping[int, TensorInfo], vocabulary: Owners) -> None:
    """Require one dtype and one shape, as far as the policies do not permit others."""
    (first, info), *others = infos.items()
    for index, other in others:
        rows_may_differ = vocabulary != "error" and len(info.shape) == len(other.shape) >= 1
        same_shape = info.shape == other.shape or (rows_may_differ and info.shape[1:] == other.shape[1:])
        same_dtype = info.dtype == other.dtype or (inputs.policies.dtype and info.is_float and other.is_float)
        if same_shape and same_dtype:
            continue
        raise UserError(
            f"{name!r} is {other} in {inputs.checkpoints[index].name!r}, {info} in {inputs.checkpoints[first].name!r}",
            where="policies",
            fix="numbers of rows: policies.vocabulary; dtypes: policies.dtype; nothing else can differ",
        )


def _refuse_missing(inputs: _Inputs, name: str) -> None:
    missing = [checkpoint.name for checkpoint in inputs.checkpoints if name not in checkpoint.infos]
    raise UserError(
        f"{name!r} is missing in {', '.join(missing[:MAX_LISTED])}",
        where="policies: keys",
        fix="policies.keys: owners merges it among the models that have it, common leaves it out",
    )


def _parts(
    inputs: _Inputs, name: str, infos: Mapping[int, TensorInfo], weights: Sequence[float], info: TensorInfo
) -> tuple[Part, ...]:
    """Cut a tensor where the number of models that have the rows changes."""
    base_info = inputs.base.infos.get(name) if inputs.base else None
    rows = {index: each.shape[0] if each.shape else 1 for index, each in infos.items()}
    num_rows = info.shape[0] if info.shape else 1
    base_rows = (base_info.shape[0] if base_info.shape else 1) if base_info else 0
    if base_info and base_info.shape[1:] != info.shape[1:]:
        raise UserError(f"{name!r} is {base_info} in the base, {info} in the models", fix="give their initialisation")
    ends = sorted({min(end, num_rows) for end in (*rows.values(), base_rows) if end} | {num_rows})
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        models = tuple(index for index in infos if rows[index] >= end)
        has_base = base_rows >= end
        if inputs.base and not has_base and len(models) > 1 and inputs.method.base != "none":
            what = f"rows {start} to {end} of {name!r} are in {len(models)} models but not in the base"
            raise UserError(what, where="policies", fix="give a base that has them, or use method linear")
        scaled = _rescaled([weights[index] for index in models], sum(weights))
        parts.append(Part(start, end, models, scaled, has_base))
    is_whole = len(parts) == 1 and set(rows.values()) == {num_rows} and base_rows in (0, num_rows)
    return (replace(parts[0], stop=None),) if is_whole else tuple(parts)


def _rescaled(weights: Sequence[float], total: float) -> tuple[float, ...]:
    """Scale the coefficients of the owners so that coefficients that sum to one still do; leave others alone."""
    owned = sum(weights)
    if owned == total or abs(total - 1) > SUM_TOLERANCE:
        return tuple(weights)
    return tuple(weight / owned if owned else 1 / len(weights) for weight in weights)


def _tied(inputs: _Inputs, names: Sequence[str]) -> list[Sequence[str]]:
    """Return the groups of names of the result that are one tensor, by the policy or by their place in the files.

    Raises:
        UserError: a policy names other tensors, or is silent on names that only some of the models tie.
    """
    tied, untied = inputs.policies.tied, inputs.policies.untied
    for group in (*tied, *untied):
        unknown = [name for name in group if name not in names]
        if unknown or len(group) < 2:
            what = f"tied tensors not found: {', '.join(unknown) or 'only one'}"
            fix = "give two or more names of the result, the first is computed"
            raise UserError(what, where="policies: tied, untied", fix=fix)
    decided = {name for group in (*tied, *untied) for name in group}
    free = [name for name in names if name not in decided]
    for checkpoint, other in permutations(inputs.checkpoints, 2):
        for group in _at_one_place([checkpoint], free):
            present = [name for name in group if name in other.infos and name not in other.updates]
            apart = [name for name in present if other.infos[name] != other.infos[present[0]]]
            if apart:
                what = (
                    f"{apart[0]!r} is {present[0]!r} in {checkpoint.name!r}, and a tensor of its own in {other.name!r}"
                )
                pair = f"[[{present[0]}, {apart[0]}]]"
                fix = f"policies.tied: {pair} computes the first only, policies.untied: {pair} both"
                raise UserError(what, where="policies", fix=fix)
    return [*tied, *_at_one_place(inputs.checkpoints, free)]


def _at_one_place(checkpoints: Sequence[Checkpoint], names: Sequence[str]) -> list[list[str]]:
    """Return the groups of names that share their memory in the files of all these models."""
    groups: dict[tuple[TensorInfo | None, ...], list[str]] = {}
    for name in names:
        infos = tuple(None if name in c.updates else c.infos.get(name) for c in checkpoints)
        if all(info is not None and info.num_elements for info in infos):
            groups.setdefault(infos, []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _tie(actions: Mapping[str, Action], tied: Sequence[Sequence[str]]) -> dict[str, Action]:
    result = dict(actions)
    for group in tied:
        first = actions[group[0]]
        for name in group[1:]:
            other = actions[name]
            if (other.info.shape, other.info.dtype, other.weights) != (
                first.info.shape,
                first.info.dtype,
                first.weights,
            ):
                what = f"{name!r} and {group[0]!r} are tied, but differ in shape, dtype or coefficients"
                raise UserError(what, where="policies: tied", fix="give both the same coefficients, or untie them")
            result[name] = replace(other, how="tied", source=group[0], why=f"tied to {group[0]}")
    return result
