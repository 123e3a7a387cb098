"""Read a study, or the settings of a trainer: YAML with `extends`, `key.sub=value` on top, checked by a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from soups.errors import UserError, did_you_mean
from soups.recipes.file import parse_yaml
from soups.study.schema import Study

MAX_EXTENDS = 2
MAX_PROBLEMS = 3
Schema = TypeVar("Schema", bound=BaseModel)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Return the study of a file, with overrides; errors are those of `load_settings`."""
    return load_settings(path, overrides, Study, "docs/studies.md shows the keys")


def load_settings(path: Path, overrides: Sequence[str], schema: type[Schema], fix: str) -> Schema:
    """Return the content of a file with overrides, checked.

    Args:
        path: the YAML file.
        overrides: `key.sub=value`, in order.
        schema: what it has to be.
        fix: where the keys are explained.

    Raises:
        UserError: no such file, no YAML, an override that fits nowhere, or values that do not fit.
    """
    data = _read(path, 0)
    for item in overrides:
        _override(data, item)
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise UserError(*_explained(error), fix=fix) from error


def _explained(error: ValidationError) -> tuple[str]:
    problems = []
    for details in error.errors(include_url=False)[:MAX_PROBLEMS]:
        key = ".".join(str(part) for part in details["loc"])
        message = details["msg"].removeprefix("Value error, ")
        problems.append(f"{key}: {message.lower()}" if key else message)
    return ("; ".join(problems),)


def _read(path: Path, depth: int) -> dict[str, Any]:
    if depth > MAX_EXTENDS:
        raise UserError("'extends' goes too deep", where=str(path), fix=f"at most {MAX_EXTENDS} levels")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError("no such study", where=str(path), fix=did_you_mean(path.stem, there)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the study: {error}", where=str(path), fix="give a YAML file") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError("a study is a mapping of keys", where=str(path), fix="docs/studies.md shows one")
    names = data.pop("extends", [])
    merged: dict[str, Any] = {}
    for name in names if isinstance(names, list) else [names]:
        _merge(merged, _read(path.parent / str(name), depth + 1))
    _merge(merged, data)
    return merged


def extended_files(path: Path) -> list[Path]:
    """Return a YAML file and every file that it extends, in order; files that are no YAML extend nothing."""
    found = [path]
    if path.suffix in (".yaml", ".yml"):
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        names = data.get("extends", []) if isinstance(data, dict) else []
        for name in names if isinstance(names, list) else [names]:
            other = path.parent / str(name)
            if other.is_file():
                found += extended_files(other)
    return found


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    """Write `new` over `into`: mappings key by key, everything else whole."""
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = deepcopy(value)


def _override(data: dict[str, Any], item: str) -> None:
    name, equals, text = item.partition("=")
    keys = name.split(".")
    if not (equals and all(keys)):
        raise UserError(f"not key=value: {item!r}", where="overrides", fix="such as train.values.steps=20")
    node: Any = data
    for depth, key in enumerate(keys[:-1]):
        node = _child(node, key, ".".join(keys[:depth]), item)
    last, value = keys[-1], parse_yaml(text, f"override {item!r}")
    if isinstance(node, list):
        node[_index(node, last, item)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(
            f"{'.'.join(keys[:-1])} is {node!r}, no section", where=f"override {item!r}", fix="check the key"
        )


def _child(node: Any, key: str, name: str, item: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, item)]
    if not isinstance(node, dict):
        raise UserError(f"{name} is {node!r}, no section", where=f"override {item!r}", fix="check the key")
    return node.setdefault(key, {})


def _index(items: list[Any], key: str, item: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        raise UserError(f"no item {key!r} in a list of {len(items)}", where=f"override {item!r}", fix="count from 0")
    return int(key)
