"""A recipe file for one point of a sweep, so that any point can be written to disk by ``soups merge``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soups.errors import UserError

DEPTH = " at depth "  # in the labels of `soups.sweep.Sweep`


def recipe_of(
    manifest: Mapping[str, Any], coefficients: Mapping[str, float], where: str = "sweep.json"
) -> dict[str, Any]:
    """Return the content of a recipe file.

    Args:
        manifest: the content of ``sweep.json``.
        coefficients: of a point: by model, and by ``model @ label`` those of modules.
        where: for messages.

    Raises:
        UserError: models that a recipe cannot name: adapters on another base, moving averages.
    """
    described = manifest["checkpoints"]
    if any(set(entry) - {"path", "sha256"} for entry in described.values()):
        raise UserError("a recipe cannot say --ema or the --base of adapters", where=where, fix="use soups merge")
    extras = manifest.get("extras", {})
    policies = {"integers": manifest["integers"], **manifest.get("policies", {})}
    recipe = {
        "method": manifest["method"],
        "params": manifest["params"],
        "models": {n: {"path": e["path"], **_extra(extras.get(n))} for n, e in described.items()},
        "base": manifest["base"] and manifest["base"]["path"],
        "weights": {name: coefficients[name] for name in described},
        "coefficients": [*_fixed(manifest, described), *_modules(described, coefficients)],
        "policies": {name: value for name, value in policies.items() if value},
    }
    return {key: value for key, value in recipe.items() if value}


def _extra(described: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if described is None else {"extra": described["path"]}


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
