"""Read a YAML file with `extends`, apply `key.sub=value` overrides, and check it against a pydantic schema.

    extends: [../base.yaml, model/tiny.yaml]    # merged left to right, then this file on top
    optim: {lr: 1.0e-4}                         # sections merge key by key, lists are replaced
    stages: {0: {optim: {lr: 2.0e-4}}}          # ... except by a section of numbers: it changes these items

    load_config("exp.yaml", ["optim.lr=3e-4", "stages.0.num_steps=100"], RunConfig)

There is no interpolation, no environment variable and no code in a configuration (`$data/` at the beginning of a text
is the schema's: see `unival.schema.DataConfig`).
"""

import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from unival.config_problem import explain_validation
from unival.errors import UserError, did_you_mean
from unival.yaml12 import parse_yaml, write_yaml

MAX_EXTENDS_LEVELS = 2
MAX_CONFIG_BYTES = 1_000_000

Schema = TypeVar("Schema", bound=BaseModel)
KeyPath = tuple[str, ...]
Sources = dict[KeyPath, str]  # where each value was written last: a file, or "override key=value"


def load_config(
    path: str | Path | None,
    overrides: Sequence[str],
    schema: type[Schema],
    *,
    root_dir: str | Path | None = None,
) -> Schema:
    """Return the validated configuration: `extends`, then the file, then the overrides, then the defaults.

    Args:
        path: The YAML file; None starts from the schema's defaults alone.
        overrides: Items `key.sub=value`, in order; a number in the path picks an existing list item. The
            value is read as YAML and replaces what was there.
        schema: The pydantic model to check against; unknown keys are refused at every level.
        root_dir: The folder that `extends` may not leave. By default the nearest folder named `configs` above
            the file, otherwise the file's own folder.

    Raises:
        UserError: Names the key, the value, what was expected, and the file or override it came from.
    """
    sources: Sources = {}
    data: dict[str, Any] = {}
    if path is not None:
        file = Path(path)
        data = _read_extended(file, Path(root_dir) if root_dir else _default_root(file), (), sources)
    for override in overrides:
        _apply_override(data, override, sources)
    try:
        return schema.model_validate(data, extra="forbid")
    except ValidationError as error:
        raise explain_validation(error, data, schema, sources, str(path or "overrides")) from None


def dump_config(config: BaseModel, path: str | Path) -> None:
    """Write every resolved value as YAML, whole or not at all; `load_config` reads an equal object back."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(write_yaml(config.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes the file private; other people of this machine may read a config
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_extended(file: Path, root: Path, children: tuple[Path, ...], sources: Sources) -> dict[str, Any]:
    """Return the file merged over what it extends, and note in `sources` who wrote each value."""
    data = _read_mapping(file)
    names = data.pop("extends", None)
    names = [] if names is None else names if isinstance(names, list) else [names]
    chain = (*children, file.resolve())
    merged: dict[str, Any] = {}
    for name in names:
        base = _base_path(name, file, root)
        if base.resolve() in chain:
            raise UserError(f"'extends' goes round in a circle: {base.name} is already being read", str(file))
        if len(chain) > MAX_EXTENDS_LEVELS:
            fix = f"at most {MAX_EXTENDS_LEVELS} levels: let {chain[0].name} name the files directly"
            raise UserError(f"'extends: {name}' is too deep", str(file), fix)
        _merge(merged, _read_extended(base, root, chain, sources), (), None, {})
    _merge(merged, data, (), str(file), sources)
    return merged


def _base_path(name: Any, file: Path, root: Path) -> Path:
    if not isinstance(name, str):
        raise UserError(f"extends: expected a file name or a list of them, got {name!r}", str(file))
    base = Path(os.path.normpath(file.parent / name))
    if Path(name).is_absolute() or not base.resolve().is_relative_to(root.resolve()):
        raise UserError(f"'extends: {name}' leaves the folder {root}", str(file), "name a file inside that folder")
    if base.suffix not in {".yaml", ".yml"}:
        raise UserError(f"'extends: {name}' is not a .yaml file", str(file))
    if not base.is_file():
        siblings = sorted(p.name for p in base.parent.glob("*.y*ml")) if base.parent.is_dir() else []
        hint = did_you_mean(base.name, siblings) if siblings else "it is relative to the file that names it"
        raise UserError(f"'extends: {name}': there is no file {base}", str(file), hint)
    return base


def _default_root(file: Path) -> Path:
    parents = file.resolve().parents
    return next((folder for folder in parents if folder.name == "configs"), file.resolve().parent)


def _read_mapping(file: Path) -> dict[str, Any]:
    if not file.is_file():
        names = sorted(p.name for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        what = "is a folder, not a file" if file.is_dir() else "no such configuration file"
        raise UserError(f"{file}: {what}", fix=did_you_mean(file.name, names) if names else None)
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"{file} is larger than {MAX_CONFIG_BYTES:,} bytes, so it is no configuration")
    try:
        data = parse_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError("the file is not UTF-8 text", str(file)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not valid YAML: {_yaml_problem(error)}", f"{file}{_yaml_place(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"expected 'key: value' lines, got {type(data).__name__}", str(file))
    return data


def _yaml_problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error)


def _yaml_place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}:{mark.column + 1}" if mark else ""


def _merge(into: dict[str, Any], new: dict[str, Any], at: KeyPath, source: str | None, sources: Sources) -> None:
    for key, value in new.items():
        if source is not None:
            sources[(*at, key)] = source
        if isinstance(value, dict):
            if isinstance(into.get(key), list) and value and all(name.isdecimal() for name in value):
                into[key] = _merge_items(into[key], value, (*at, key), source, sources)
                continue
            if not isinstance(into.get(key), dict):
                into[key] = {}
            _merge(into[key], value, (*at, key), source, sources)
        else:
            into[key] = deepcopy(value)


def _merge_items(items: list[Any], new: dict[str, Any], at: KeyPath, source: str | None, sources: Sources) -> list[Any]:
    """Return the list with changed items: `{0: {lr: 0.1}}` merges into the first one."""
    numbered = {str(number): item for number, item in enumerate(items)}
    name, where = ".".join(at), source or "extends"
    changes = {str(_list_index(items, number, name, where)): value for number, value in new.items()}
    _merge(numbered, changes, at, source, sources)
    return list(numbered.values())


def _apply_override(data: dict[str, Any], override: str, sources: Sources) -> None:
    where = f"override '{override}'"
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise UserError("expected key.sub=value", where, "for example optim.lr=1e-4")
    if keys[0] == "extends":
        raise UserError("'extends' can only be written in a file", where)
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"the value is not valid YAML: {_yaml_problem(error)}", where, "quote it") from None
    node: Any = data
    for depth, key in enumerate(keys[:-1]):
        node = _step_into(node, key, ".".join(keys[:depth]), where)
    if isinstance(node, list):
        node[_list_index(node, keys[-1], ".".join(keys[:-1]), where)] = value
    elif isinstance(node, dict):
        node[keys[-1]] = value
    else:
        raise UserError(f"'{'.'.join(keys[:-1])}' is {node!r}, not a section or a list", where)
    for path in [path for path in sources if path[: len(keys)] == tuple(keys)]:
        del sources[path]  # the values below this key are now the override's
    sources[tuple(keys)] = where


def _step_into(node: Any, key: str, name: str, where: str) -> Any:
    if isinstance(node, list):
        return node[_list_index(node, key, name, where)]
    if not isinstance(node, dict):
        raise UserError(f"'{name}' is {node!r}, not a section or a list", where)
    if node.get(key) is None:
        node[key] = {}
    return node[key]


def _list_index(items: list[Any], key: str, name: str, where: str) -> int:
    if not key.isdecimal() or int(key) >= len(items):
        valid = f"0 to {len(items) - 1}" if items else "none, it is empty"
        raise UserError(f"'{name}' is a list and has no item '{key}'", where, f"valid items: {valid}")
    return int(key)
