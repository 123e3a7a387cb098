"""Parameters of mergekit that depend on the layer: a coefficient for every tensor, from its name.

There a list holds the values at evenly spaced depths, linear between them; the depth of a layer is its number over that
of the last, 1 for an only layer, and 0 outside of layers (mergekit 0.1.5, `config.evaluate_setting` and `plan`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from soups.errors import UserError
from soups.recipes.coefficients import interpolate

LAYER = re.compile(r"(.*?)(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def depends_on_layer(setting: Any) -> bool:
    """Say whether a value is a list of numbers, or a list of filters with one among them."""
    if isinstance(setting, Mapping):
        return depends_on_layer(setting.get("value"))
    return isinstance(setting, list) and any(
        not isinstance(item, Mapping) or depends_on_layer(item) for item in setting
    )


def layers_of(names: Sequence[str], where: str) -> dict[str, int]:
    """Return the number of the layer of each tensor that is in one.

    Raises:
        UserError: there is none, or there are several stacks of layers.
    """
    found = {name: match for name in names if (match := LAYER.match(name))}
    stacks = sorted({match[1] for match in found.values()})
    if len(stacks) != 1:
        what = f"layers of {', '.join(stacks)}" if stacks else "no layers in the names of the tensors"
        fix = "write coefficients: with a pattern for each stack, see docs/merge_methods.md, Recipes"
        raise UserError(f"not shared with mergekit: {what}", where=where, fix=fix)
    return {name: int(match[2]) for name, match in found.items()}


def values_by_tensor(settings: Sequence[Any], names: Sequence[str], where: str) -> dict[str, tuple[float, ...]]:
    """Return the value of each setting for each tensor.

    Args:
        settings: numbers, lists of numbers, or lists of `{filter, value}`.
        names: of all tensors.
        where: for messages.

    Raises:
        UserError: a tensor without a value, a filter that no name contains, or what is no number.
    """
    for item in (item for setting in settings if isinstance(setting, list) for item in setting):
        text = item.get("filter") if isinstance(item, Mapping) else None
        if text not in (None, "*") and not any(str(text) in name for name in names):
            raise UserError(f"no tensor has {text!r} in its name", where=where, fix="names are such as: " + names[0])
    layers = layers_of(names, where)
    last = max(layers.values())
    depths = {name: layer / last if last else 1.0 for name, layer in layers.items()}
    return {name: tuple(_value(setting, name, depths.get(name, 0.0), where) for setting in settings) for name in names}


def _value(setting: Any, name: str, depth: float, where: str) -> float:
    if isinstance(setting, list) and setting and all(isinstance(item, Mapping) for item in setting):
        for item in setting:
            if item.get("filter") in (None, "*") or str(item["filter"]) in name:
                return _value(item.get("value"), name, depth, where)
        what = f"no value for {name!r}"
    else:
        try:
            return interpolate(tuple(map(float, setting)) if isinstance(setting, list) else (float(setting),), depth)
        except (TypeError, ValueError, IndexError):
            what = f"the value {setting!r}"
    raise UserError(f"not shared with mergekit: {what}", where=where, fix="give numbers, lists of numbers or filters")


def as_rules(models: Sequence[str], table: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the `weights` and `coefficients` of a recipe that give each tensor its values; most have the weights."""
    (default, _), *others = Counter(tuple(values) for values in table.values()).most_common()
    patterns = {
        values: "|".join(re.escape(name) for name, each in table.items() if tuple(each) == values)
        for values, _ in others
    }
    return {
        "weights": dict(zip(models, default, strict=True)),
        "coefficients": [
            {"tensors": pattern, "weights": dict(zip(models, values, strict=True))}
            for values, pattern in patterns.items()
        ],
    }


def without_slices(data: Mapping[str, Any], where: str) -> tuple[dict[str, Any], int]:
    """Return a recipe with `models` in place of one slice of whole models, and how many layers it says they have.

    Raises:
        UserError: several slices, or ranges that are not the same and from 0.
    """
    slices = data["slices"]
    whole = "one slice with the layer_range [0, number of layers] of every model"
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping) or "models" in data:
        raise UserError("not shared with mergekit: layers that are put together anew", where=where, fix=whole)
    (one,) = slices
    sources = one.get("sources") or []
    if not isinstance(sources, list):
        raise UserError(f"sources is {sources!r}, not a list", where=where, fix=whole)
    ranges = {str(source.get("layer_range")) if isinstance(source, Mapping) else "" for source in sources}
    span = re.fullmatch(r"[\[(]0, (\d+)[\])]", ranges.pop() if len(ranges) == 1 else "")
    if span is None or set(one) - {"sources", "base_model", "parameters"}:
        raise UserError("not shared with mergekit: slices that are parts of models", where=where, fix=whole)
    models = [{key: value for key, value in source.items() if key != "layer_range"} for source in sources]
    changed = {
        "models": models,
        "base_model": one.get("base_model") or data.get("base_model"),
        "parameters": {**(data.get("parameters") or {}), **(one.get("parameters") or {})},
    }
    rest = {key: value for key, value in data.items() if key != "slices"}
    return {key: value for key, value in (rest | changed).items() if value is not None}, int(span[1])
