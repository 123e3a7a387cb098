"""A recipe, or a command, for one point of a sweep, so that any point can be written to disk by ``soups merge``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soups.errors import UserError
from soups.methods import get_method
from soups.recipes.coefficients import interpolate
from soups.results import method_of

DEPTH = " at depth "  # in the labels of `soups.sweep.Sweep`


def recipe_of(manifest: Mapping[str, Any], coefficients: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of a recipe file that makes the model of a point.

    Args:
        manifest: the content of ``sweep.json``.
        coefficients: of a point: by model, and by ``model @ label`` those of modules.
    """
    described = manifest["checkpoints"]
    extras = manifest.get("extras", {})
    policies = {"integers": manifest["integers"], **manifest.get("policies", {})}
    recipe = {
        "method": manifest["method"],
        "params": manifest["params"],
        "models": {name: _model(entry, extras.get(name)) for name, entry in described.items()},
        "base": _base(manifest),
        "weights": {name: coefficients[name] for name in described},
        "coefficients": [*_fixed(manifest, described), *_modules(described, coefficients)],
        "policies": {name: value for name, value in policies.items() if value},
    }
    if _extrapolates(recipe):
        recipe["params"] = {**recipe["params"], "extrapolate": True}
    return {key: value for key, value in recipe.items() if value}


def command_of(recipe: Mapping[str, Any]) -> list[str] | None:
    """Return the words of the ``soups merge`` that does the same; None where flags cannot say it."""
    models = recipe["models"]
    further = [model.keys() - {"path"} for model in models.values()]
    same = all(keys == further[0] for keys in further)
    if not same or "extra" in further[0] or "coefficients" in recipe or recipe["policies"].keys() != {"integers"}:
        return None
    words = ["soups", "merge", *(model["path"] for model in models.values())]
    words += ["--weights", ",".join(repr(weight).removesuffix(".0") for weight in recipe["weights"].values())]
    if list(models) != [_default_name(Path(model["path"])) for model in models.values()]:
        words += [word for name in models for word in ("--name", name)]
    if recipe["method"] != "linear":
        words += ["--method", recipe["method"]]
    for key, value in recipe.get("params", {}).items():
        words += ["--extrapolate"] if key == "extrapolate" else ["--param", f"{key}={json.dumps(value)}"]
    words += ["--base", recipe["base"]] if "base" in recipe else []
    words += ["--ema"] if "ema" in further[0] else []
    integers = recipe["policies"]["integers"]
    return words + (["--integers", integers] if integers != "error" else [])


def _default_name(path: Path) -> str:
    return path.resolve().stem if path.is_file() else path.resolve().name


def _model(entry: Mapping[str, Any], extra: Mapping[str, Any] | None) -> dict[str, Any]:
    average = {"ema": True} if entry.get("average") else {}
    return {"path": entry["path"], **average, **({} if extra is None else {"extra": extra["path"]})}


def _base(manifest: Mapping[str, Any]) -> str | None:
    """Return the base to give: the method's, else the one that all adapters are on.

    Adapters on several bases are each on the one that its own settings name, so that none was given; so are those of
    a method that would use the base itself.
    """
    if manifest["base"]:
        return manifest["base"]["path"]
    under = {entry["base"]["path"] for entry in manifest["checkpoints"].values() if "base" in entry}
    takes_base = method_of(manifest).base != "none"
    return under.pop() if len(under) == 1 and not takes_base else None


def _extrapolates(recipe: Mapping[str, Any]) -> bool:
    """Say whether the method takes these coefficients only with ``extrapolate``, which a sweep does not record."""
    method = get_method(recipe["method"], recipe["params"])
    tables = [recipe["weights"], *(rule["weights"] for rule in recipe["coefficients"])]
    try:
        for row in (row for table in tables for row in _rows(list(table.values()))):
            method.module.check(row, **method.params)
    except UserError:
        return "extrapolate" in method.params
    return False


def _rows(weights: Sequence[float | list[float]]) -> list[tuple[float, ...]]:
    """Return the coefficients of every model at each depth for which some are given."""
    profiles = [tuple(value) if isinstance(value, list) else (value,) for value in weights]
    last = max(len(values) for values in profiles) - 1
    return [tuple(interpolate(values, i / last if last else 0.0) for values in profiles) for i in range(last + 1)]


def _fixed(manifest: Mapping[str, Any], names: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"tensors": pattern, "weights": dict(zip(names, (list(values) for values in weights), strict=True))}
        for pattern, weights in manifest.get("rules", ())
    ]


def _modules(names: Mapping[str, Any], coefficients: Mapping[str, float]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, list[float]]] = {}
    for key, value in coefficients.items():
        name, separator, label = key.partition(" @ ")
        if separator and name in names:
            found.setdefault(label.partition(DEPTH)[0], {}).setdefault(name, []).append(value)
    return [{"tensors": pattern, "weights": weights} for pattern, weights in found.items()]
