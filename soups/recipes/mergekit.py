"""Recipes written for mergekit (https://github.com/arcee-ai/mergekit), for the methods that both tools have.

What would be merged differently here is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from soups.errors import UserError
from soups.recipes.mergekit_layers import as_rules, depends_on_layer, layers_of, values_by_tensor, without_slices
from soups.state import open_checkpoint

# Name there -> name here, and parameters that make it the same.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"extrapolate": True}),  # there, coefficients are free
    "slerp": ("slerp", {}),
    "task_arithmetic": ("task_arithmetic", {}),
    "ties": ("ties", {"density": 1.0, "normalize": True}),
    "dare_linear": ("dare", {"density": 1.0}),
    "dare_ties": ("dare", {"density": 1.0, "elect": True}),
    "breadcrumbs": ("breadcrumbs", {"density": 1.0, "outliers": 0.01}),
    "breadcrumbs_ties": ("breadcrumbs", {"density": 1.0, "outliers": 0.01, "elect": True}),
    "della": ("della", {"density": 1.0, "spread": 0.3, "normalize": True}),
    "della_linear": ("della", {"density": 1.0, "spread": 0.3, "elect": False}),
    "model_stock": ("model_stock", {}),
}
# Parameters there -> parameters here.
PARAMS = {"density": "density", "gamma": "outliers", "epsilon": "spread", "lambda": "scale"}
SCALE = {"epsilon": 2.0}  # half the width of the interval there, the width here
KNOWN_KEYS = {"merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"}
TYPES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("models", "slices"), (list, "a list")),
    **dict.fromkeys(("merge_method", "base_model", "dtype", "out_dtype"), (str, "a text")),
    "parameters": (Mapping, "a mapping"),
}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def is_mergekit(data: Mapping[str, Any]) -> bool:
    """Say whether a recipe is written in the language of mergekit."""
    return "merge_method" in data


def from_mergekit(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the same recipe in our language.

    Raises:
        UserError: it uses something that is not shared.
    """
    unknown = sorted(set(data) - KNOWN_KEYS)
    if unknown:
        raise _refused(", ".join(unknown), where)
    _check_types(data, where)
    if "slices" in data:
        data, num_layers = without_slices(data, where)
        names = _tensor_names(_model(data["models"][0], where)[0])
        if num_layers != (found := max(layers_of(names, where).values()) + 1):
            raise _refused(f"a slice of {num_layers} of {found} layers", where)
    method = data["merge_method"]
    if method not in METHODS:
        raise _refused(f"merge_method: {method}", where, f"methods that both have: {', '.join(sorted(METHODS))}")
    name, fixed = METHODS[method]
    shared, base = dict(data.get("parameters") or {}), data.get("base_model")
    models = [_model(model, where) for model in data.get("models") or []]
    if not models:
        raise _refused("a recipe without models", where, "models: [{model: PATH, parameters: {...}}]")
    recipe: dict[str, Any] = {"method": name, **_dtype(data, where)}
    if name == "slerp":
        recipe |= _slerp([path for path, _ in models], base, shared, where)
    else:
        recipe |= _mixture(name, fixed, models, base, shared, where)
    if shared:
        raise _refused(f"parameters: {', '.join(sorted(shared))}", where)
    return recipe


def _check_types(data: Mapping[str, Any], where: str) -> None:
    """Refuse what mergekit could not read either."""
    for key, (kind, name) in TYPES.items():
        if data.get(key) is not None and not isinstance(data[key], kind):
            what = f"{key} is {data[key]!r}, not {name}"
            raise UserError(what, where=where, fix="see mergekit's own page on this key")


def _model(model: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the parameters of one entry of ``models``."""
    if not isinstance(model, Mapping) or "model" not in model or set(model) - {"model", "parameters"}:
        raise _refused(f"the model {model}", where, "models: [{model: PATH, parameters: {...}}]")
    parameters = model.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise UserError(f"parameters of {model['model']} is {parameters!r}, not a mapping", where=where)
    return str(model["model"]), dict(parameters)


def _dtype(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    dtype = data.get("out_dtype") or data.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise _refused(f"dtype: {dtype}", where, f"choices: {', '.join(DTYPES)}")
    return {} if dtype is None else {"policies": {"dtype": DTYPES[dtype]}}


def _mixture(
    name: str,
    fixed: Mapping[str, Any],
    models: Sequence[tuple[str, dict[str, Any]]],
    base: Any,
    shared: dict[str, Any],
    where: str,
) -> dict[str, Any]:
    """Return models, base, weights and parameters of every method but slerp."""
    is_linear = name == "linear"
    if is_linear and base is not None and base not in [path for path, _ in models]:
        raise _refused("a base_model that is not one of the models of a linear merge", where)
    kept = [(path, settings) for path, settings in models if is_linear or path != base]
    named, settings = _named([path for path, _ in kept], where), [settings for _, settings in kept]
    return {
        "models": named,
        **({} if is_linear else {"base": base}),
        **_weights(named, settings, shared, name, fixed, where),
        "params": _params(fixed, settings, shared, name, where),
    }


def _named(paths: Sequence[str], where: str) -> dict[str, str]:
    """Name each model by the last part of its path, or by the whole path where that is not unique."""
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise _refused(f"a model that is given twice, {twice}", where, "give it once, with the sum of its weights")
    short = [path.rstrip("/").rpartition("/")[2] for path in paths]
    return {name if short.count(name) == 1 else path: path for name, path in zip(short, paths, strict=True)}


def _slerp(paths: Sequence[str], base: Any, shared: dict[str, Any], where: str) -> dict[str, Any]:
    """Return models and weights of a slerp: there, the base is the first of the two models."""
    others = [path for path in paths if path != base]
    if base is None or len(others) != 1:
        raise _refused("slerp of other than a base_model and one more model", where)
    models = _named([str(base), others[0]], where)
    first, second = models
    recipe: dict[str, Any] = {"models": models, "params": {"extrapolate": True}}  # there, t is free
    given = shared.pop("t", None)
    if depends_on_layer(given):
        table = values_by_tensor([given], _tensor_names(str(base)), where)
        return recipe | as_rules(list(models), {name: (1 - t, t) for name, (t,) in table.items()})
    *rules, (_, default) = _filters(given, "t", where)
    return recipe | {
        "weights": {first: 1 - default, second: default},
        "coefficients": [
            {"tensors": f".*{re.escape(text)}.*", "weights": {first: 1 - t, second: t}} for text, t in rules
        ],
    }


def _filters(value: Any, key: str, where: str) -> list[tuple[str, float]]:
    """Return (substring of the name, value) in order of precedence; the last has no substring."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return [("", _number(value, key, where))]
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and "value" in item for item in value):
        raise _refused(f"{key}: {value}", where, r"a list over the layers: write coefficients: with a pattern")
    found: list[tuple[str, float]] = []
    for item in value:
        text = item.get("filter")
        found.append(("" if text in (None, "*") else str(text), _number(item["value"], key, where)))
        if not found[-1][0]:
            return found
    raise _refused(f"{key} without a value for the other tensors", where)


def _number(value: Any, key: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _refused(f"{key}: {value}", where, "give a number") from None


def _weights(
    models: Mapping[str, str],
    settings: Sequence[dict[str, Any]],
    shared: dict[str, Any],
    method: str,
    fixed: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Return the weights, divided by their sum where mergekit does so, and the rules for filters."""
    names, common = list(models), shared.pop("weight", None)
    if method == "model_stock":
        return {}
    given = [setting.pop("weight", common) for setting in settings]
    missing = [name for name, value in zip(names, given, strict=True) if value is None]
    if missing:
        raise _refused(f"no weight for {', '.join(missing)}", where, "give parameters: {weight: ...}")
    normalize = "normalize" not in fixed and shared.pop("normalize", method == "linear")
    if normalize and fixed.get("elect"):  # there, by what the signs leave of the weights; no parameter of ours
        raise _refused(f"normalize with {method} and signs", where)
    scaled = _normalized if normalize else _as_given
    if any(map(depends_on_layer, given)):
        table = values_by_tensor(given, _tensor_names(next(iter(models.values()))), where)
        return as_rules(names, {name: scaled(values, where) for name, values in table.items()})
    tables = [_filters(value, "weight", where) for value in given]
    texts = [[text for text, _ in table] for table in tables]
    if any(each != texts[0] for each in texts):
        raise _refused("weights with different filters per model", where, "write coefficients: with patterns")
    rows = []
    for row, text in enumerate(texts[0]):
        values = scaled([table[row][1] for table in tables], where)
        rows.append((text, dict(zip(names, values, strict=True))))
    *rules, (_, default) = rows
    coefficients = [{"tensors": f".*{re.escape(text)}.*", "weights": values} for text, values in rules]
    return {"weights": default, "coefficients": coefficients}


def _normalized(values: Sequence[float], where: str) -> Sequence[float]:
    if not sum(values):
        raise _refused("weights that sum to 0, to be normalised", where)
    return [value / sum(values) for value in values]


def _as_given(values: Sequence[float], where: str) -> Sequence[float]:
    return values


def _tensor_names(path: str) -> list[str]:
    return list(open_checkpoint(path).infos)


def _params(
    fixed: Mapping[str, Any], settings: Sequence[dict[str, Any]], shared: dict[str, Any], method: str, where: str
) -> dict[str, Any]:
    """Return the parameters here; those given per model must agree."""
    params = dict(fixed)
    shared.pop("int8_mask", None)  # how masks are stored; changes no value
    if "normalize" in params:
        params["normalize"] = shared.pop("normalize", params["normalize"])
    is_random = method in ("dare", "della")
    if method not in ("linear", "model_stock") and shared.pop("rescale", is_random) != is_random:
        raise _refused(f"rescale: {str(not is_random).lower()} with {method}", where)
    for theirs, ours in PARAMS.items():
        is_known = ours in params or (ours == "scale" and method not in ("linear", "model_stock"))
        value = _agreed(theirs, settings, shared, where) if is_known else None
        if value is not None:
            params[ours] = value * SCALE.get(theirs, 1.0)
    if params.get("density") == 1:  # then nothing is dropped there, whatever these say
        params |= {name: 0.0 for name in ("spread", "outliers") if name in params}
    left = sorted({key for setting in settings for key in setting})
    if left:
        raise _refused(f"parameters: {', '.join(left)}", where)
    return params


def _agreed(key: str, settings: Sequence[dict[str, Any]], shared: dict[str, Any], where: str) -> float | None:
    """Return the value of a parameter that is the same for every model, if it is given."""
    common = shared.pop(key, None)
    values = {str(setting.pop(key, common)): None for setting in settings}
    if len(values) > 1:
        raise _refused(f"{key} that differs between the models", where)
    value = next(iter(values), str(common))
    return None if value == "None" else _number(value, key, where)


def _refused(what: str, where: str, fix: str = "") -> UserError:
    fix = fix or "write it as a recipe of soups, see docs/merge_methods.md, or use mergekit"
    return UserError(f"not shared with mergekit: {what}", where=where, fix=fix)
