r"""Recipe files: what ``soups merge RECIPE.yaml`` reads. Paths are relative to the current folder.

    method: ties
    params: {density: 0.3}
    models: {caption: runs/caption, vqa: {path: runs/vqa, ema: true}}
    base: runs/init
    weights: {caption: 0.5, vqa: 0.5}
    coefficients:                                  # the first rule that matches a whole name wins
      - tensors: decoder\.layers\.(\d+)\..*        # a list runs over the depth, from the first layer to the last
        weights: {caption: [1, 0.5], vqa: [0, 0.5]}
    policies: {integers: max, batch_norm: interpolate, keys: owners, dtype: F32}

A file of mergekit is read too, see `soups.recipes.mergekit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soups.errors import UserError, did_you_mean
from soups.merge import Recipe, used_base
from soups.methods import get_method
from soups.recipes.coefficients import Rule, check_finite
from soups.recipes.compute import is_new
from soups.recipes.mergekit import from_mergekit, is_mergekit
from soups.recipes.policies import Action, Policies
from soups.state import Checkpoint, is_adapter, open_checkpoint

MAX_PROBLEMS = 3
Choice = Literal["error", "owners", "common"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """One model."""

    path: Path
    extra: Path | None = None
    """Checkpoint of the further tensors that the method needs, such as Fisher diagonals, under the same names."""
    ema: bool = False
    """Take the moving average that a training stored beside the weights."""


class RuleSection(_Section):
    """Coefficients of some tensors."""

    tensors: str
    """Regular expression for the whole name."""
    weights: dict[str, float | list[float]]
    """By model: a number, or values from the first to the last layer."""


class PolicySection(_Section):
    """What may differ between the models; see `soups.recipes.policies`."""

    integers: str = "error"
    batch_norm: str = "auto"
    recompute: str = ""
    recompute_args: dict[str, Any] = Field(default_factory=dict)
    keys: Choice = "error"
    vocabulary: dict[str, Choice] = Field(default_factory=dict)
    tied: list[list[str]] = Field(default_factory=list)
    untied: list[list[str]] = Field(default_factory=list)
    dtype: Literal["F64", "F32", "F16", "BF16"] | None = None


class RecipeSection(_Section):
    """A whole recipe file."""

    models: dict[str, Path | ModelSection]
    """Name to path; names are those of the coefficients."""
    method: str = "linear"
    params: dict[str, Any] = Field(default_factory=dict)
    base: Path | None = None
    """The common initialisation, and what adapters are applied to."""
    weights: dict[str, float] = Field(default_factory=dict)
    """By model; equal by default."""
    coefficients: list[RuleSection] = Field(default_factory=list)
    policies: PolicySection = Field(default_factory=PolicySection)


def load_recipe(path: Path, *, is_swept: bool = False) -> Recipe:
    """Read a recipe file and open its checkpoints; reads headers, no data.

    Args:
        path: the file.
        is_swept: whether coefficients come from elsewhere; ``weights`` are then an error.

    Raises:
        UserError: not YAML, unknown or mistyped keys, unknown names, or a checkpoint that cannot be opened.
    """
    text = _read(path)
    data = parse_yaml(text, str(path))
    if not isinstance(data, Mapping):
        raise UserError("a recipe is a mapping of keys", where=str(path), fix="see docs/merge_methods.md, Recipes")
    if is_mergekit(data):
        data = from_mergekit(data, str(path))
    section = _validate(data, str(path))
    if is_swept and section.weights:
        raise UserError("weights are what a sweep varies", where=f"{path}: weights", fix="remove them")
    return build_recipe(section, text, str(path))


def build_recipe(section: RecipeSection, text: str = "", where: str = "recipe") -> Recipe:
    """Open the checkpoints of a recipe and bind its method."""
    if not section.models:
        raise UserError("no models", where=where, fix="models: {name: path, ...}")
    models = {n: m if isinstance(m, ModelSection) else ModelSection(path=m) for n, m in section.models.items()}
    base = open_checkpoint(section.base, "base") if section.base else None
    checkpoints = [
        open_checkpoint(model.path, name, average=model.ema, adapter_base=base if is_adapter(model.path) else None)
        for name, model in models.items()
    ]
    extras = [
        (checkpoint, open_checkpoint(model.extra, f"{checkpoint.name}, extra"))
        for checkpoint, model in zip(checkpoints, models.values(), strict=True)
        if model.extra is not None
    ]
    if extras and len(extras) < len(checkpoints):
        lacking = ", ".join(name for name, model in models.items() if model.extra is None)
        raise UserError(f"no extra: for {lacking}", where=where, fix="give it for every model, or for none")
    equal = dict.fromkeys(models, 1 / len(models))
    weights = _in_order(section.weights or equal, checkpoints, f"{where}: weights")
    policies = section.policies.model_dump(include={each.name for each in fields(Policies)})
    method = get_method(section.method, section.params, extras)
    return Recipe(
        checkpoints,
        [values[0] for values in weights],
        method,
        used_base(base, method, checkpoints),
        section.policies.integers,
        rules=[
            Rule(rule.tensors, _in_order(rule.weights, checkpoints, f"{where}: coefficients, rule {number}"))
            for number, rule in enumerate(section.coefficients, start=1)
        ],
        policies=Policies(**policies),
        text=text,
    )


def _in_order(
    weights: Mapping[str, float | list[float]], checkpoints: list[Checkpoint], where: str
) -> tuple[tuple[float, ...], ...]:
    """Return the coefficients in the order of the models, each as a tuple."""
    names = [checkpoint.name for checkpoint in checkpoints]
    for name in weights:
        if name not in names:
            raise UserError(f"no model is called {name!r}", where=where, fix=did_you_mean(name, names))
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(
            f"no coefficient for {', '.join(missing)}", where=where, fix="give one per model; 0 leaves it out"
        )
    listed = tuple(tuple(value) if isinstance(value, list) else (value,) for value in (weights[n] for n in names))
    if not all(listed):
        raise UserError("an empty list of coefficients", where=where, fix="give at least one number")
    check_finite((value for values in listed for value in values), where)
    return listed


def explain(recipe: Recipe) -> list[dict[str, Any]]:
    """Return how each tensor of the result is made: name, dtype, shape, action, coefficients by model, policy."""
    names = [checkpoint.name for checkpoint in recipe.checkpoints]
    return [
        {
            "tensor": name,
            "dtype": action.info.dtype,
            "shape": list(action.info.shape),
            "action": _action(recipe, action),
            "coefficients": dict(zip(names, action.weights, strict=True)),
            "parts": [
                {
                    "rows": None if part.stop is None else [part.start, part.stop],
                    "coefficients": {names[i]: w for i, w in zip(part.models, part.weights, strict=True)},
                }
                for part in action.parts
            ],
            "policy": action.why,
        }
        for name, action in recipe.actions.items()
    ]


def _action(recipe: Recipe, action: Action) -> str:
    """Return what is done to a tensor, in a word: what one model adds to the base is copied, as in `compute_into`."""
    if action.how != "merge":
        return action.how
    return "copy" if all(is_new(part, recipe.method) for part in action.parts) else recipe.method.name


def explain_lines(recipe: Recipe) -> list[str]:
    """Return the table of `explain` as text, and the tensors that are left out."""
    rows = [["tensor", "of", "action", "coefficients", "policy"]]
    for row in explain(recipe):
        parts = [
            ("" if part["rows"] is None else f"rows {part['rows'][0]}-{part['rows'][1] - 1}: ")
            + " ".join(f"{model} {weight:.4g}" for model, weight in part["coefficients"].items())
            for part in row["parts"]
        ]
        rows.append([row["tensor"], f"{row['dtype']} {row['shape']}", row["action"], "; ".join(parts), row["policy"]])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    ]
    names = {name for checkpoint in recipe.checkpoints for name in checkpoint.infos}
    return [*lines, *(f"left out: {name}" for name in sorted(names - set(recipe.actions)))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("no such recipe", where=str(path), fix="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe: {error}", where=str(path), fix="give a YAML file") from error


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in mapping:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            mapping[key] = self.construct_object(value_node, deep=True)
        return mapping


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; a key given twice is an error.

    Raises:
        UserError: the text is no YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:  # TypeError: a key that is a list
        what = " ".join(str(error).split())
        raise UserError(f"not valid YAML: {what}", where=where, fix="see docs/merge_methods.md, Recipes") from error


def _validate(data: Mapping[str, Any], where: str) -> RecipeSection:
    try:
        return RecipeSection.model_validate(data)
    except ValidationError as error:
        problems, fixes = [], []
        for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
            is_path = details["loc"][0] == "models" and len(details["loc"]) > 2 and "path" in str(details["loc"][2])
            key = ".".join(str(part) for part in details["loc"][: 2 if is_path else None])
            wanted = "a path, or a mapping with a path" if is_path else details["msg"].lower()
            if f"{key}: {wanted}" not in problems:
                problems.append(f"{key}: {wanted}")
            if details["type"] == "extra_forbidden" and len(details["loc"]) == 1:
                fixes.append(did_you_mean(key, RecipeSection.model_fields))
        fix = fixes[0] if fixes else "see docs/merge_methods.md, Recipes"
        raise UserError("; ".join(problems), where=where, fix=fix) from error
