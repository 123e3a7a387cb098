"""What is wrong with a configuration, as one `UserError`: key, value, what was expected, and who wrote it."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from unival.errors import UserError, did_you_mean

MAX_PROBLEMS = 3
_MISSING = object()

# By the beginning of pydantic's error type (https://docs.pydantic.dev/latest/errors/validation_errors/).
_EXPECTED = {
    "int_from_float": "a whole number",
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "text",
    "list_": "a list",
    "tuple_type": "a list",
    "set_": "a list",
    "dict_": "a section",
    "model_": "a section",
    "dataclass_": "a section",
    "path_": "a path",
    "none_required": "null",
}
_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text", (str,)),
}


@contextmanager
def at(key: str) -> Iterator[None]:
    """Name the key of the configuration in errors that the block raises."""
    try:
        yield
    except UserError as error:
        where = f"{key}, {error.where}" if error.where else key
        raise UserError(error.what, where, error.fix) from None


def check_exists(path: Any) -> None:
    """Refuse the path of a file or folder that is not there; None is no path."""
    if path is None or Path(path).exists():
        return
    parent = Path(path).parent
    if parent.is_dir():
        siblings = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
        raise UserError(f"no such file: {path}", fix=f"in {parent}: {did_you_mean(Path(path).name, siblings)}")
    raise UserError(f"no such file: {path}", fix=f"there is no folder {parent}; paths of data start at `data.root`")


def check_kinds(function: Callable[..., Any], given: Mapping[str, Any], what: str = "") -> None:
    """Refuse values that are not of the kind of a parameter's default.

    Parameters without a default take anything, as do those whose annotation says more than the kind of the default.

    Args:
        function: Its signature says what is expected.
        given: Values by the names of parameters.
        what: Stands before the name in the message.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        kind = type(parameter.default)
        is_plain = parameter.annotation in (kind, kind.__name__, inspect.Parameter.empty)
        expected, kinds = _KINDS.get(kind, ("", ())) if is_plain else ("", ())
        value = given.get(name, parameter.default)
        if kinds and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise UserError(f"{what}{name} is {value!r}", fix=f"give {expected}")


def explain_validation(
    error: ValidationError,
    data: Mapping[str, Any],
    schema: type[BaseModel],
    sources: Mapping[tuple[str, ...], str],
    main_source: str,
) -> UserError:
    """Return the error to raise; the first problems are named, the others counted.

    Args:
        error: What pydantic found in `data`.
        data: The merged values before validation.
        schema: The model that `data` was checked against; its fields are the valid keys.
        sources: Key path to the file or override that wrote the value.
        main_source: Named for a key that nobody wrote.
    """
    # A union reports one error per member under the same key: one problem with several expectations.
    problems: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        problems.setdefault(_key_path(details, data), []).append(details)
    texts, places, fixes = [], [], []
    # An unknown key comes first: it often is the misspelt name of one that is reported as missing.
    order = {"extra_forbidden": 0, "missing": 2}
    ranked = sorted(problems.items(), key=lambda item: order.get(item[1][0]["type"], 1))
    for path, group in ranked[:MAX_PROBLEMS]:
        text, fix = _describe(path, group, data, schema)
        texts.append(text)
        places.append(_source_of(path, sources, main_source))
        fixes += [fix] if fix else []
    if len(problems) > MAX_PROBLEMS:
        texts.append(f"and {len(problems) - MAX_PROBLEMS} more")
    fix = "; ".join(dict.fromkeys(fixes)) or None
    return UserError("; ".join(texts), ", ".join(dict.fromkeys(places)), fix)


def _key_path(details: ErrorDetails, data: Any) -> tuple[str, ...]:
    """Drop from pydantic's location the names of union members, which are no keys of the file."""
    path: list[str] = []
    for part in details["loc"]:
        inner = _child(data, part)
        is_missing_key = details["type"] == "missing" and part == details["loc"][-1]
        if inner is not _MISSING or is_missing_key:
            path.append(str(part))
            data = inner
    return tuple(path)


def _child(data: Any, part: str | int) -> Any:
    if isinstance(data, Mapping):
        return data.get(str(part), _MISSING)
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return _MISSING


def _describe(
    path: tuple[str, ...], group: list[ErrorDetails], data: Any, schema: type[BaseModel]
) -> tuple[str, str | None]:
    name = ".".join(path) or "the file"
    # Where one member of a union knows the key and another does not, the one that got further explains more.
    known = [details for details in group if details["type"] not in {"extra_forbidden", "missing"}] or group
    details = known[0]
    if details["type"] == "extra_forbidden":
        return f"unknown key '{name}'", did_you_mean(path[-1], _fields_at(schema, path[:-1]))
    if details["type"] == "missing":
        return f"'{name}' is required", "write it in the file, or give the override key=value"
    expected = list(dict.fromkeys(_expectation(one) for one in known))
    if details["type"] in {"value_error", "assertion_error"}:
        value = _value_at(path, data)
        # A section that contradicts itself says how; shown as a whole it would only bury that.
        return f"{name}: {expected[0]}" + ("" if isinstance(value, dict) else f", got {_shown(value)}"), None
    if details["loc"][-1] == "[key]":
        choices = re.findall(r"'([^']*)'", expected[0])
        return f"unknown key '{name}'", did_you_mean(path[-1], choices)
    what = f"{name}: expected {' or '.join(expected)}, got {_shown(_value_at(path, data))}"
    return what, _choice_hint(known, _value_at(path, data))


def _expectation(details: ErrorDetails) -> str:
    context = details.get("ctx", {})
    for key in ("expected", "expected_tags"):
        if key in context:
            return str(context[key])
    kind = details["type"]
    if kind in {"value_error", "assertion_error"}:
        return re.sub(r"^(Value|Assertion) error, ", "", details["msg"])
    prefix = next((prefix for prefix in _EXPECTED if kind.startswith(prefix)), None)
    if prefix:
        return _EXPECTED[prefix]
    what = re.sub(r"^(Input|Value|String|List|Tuple|Dictionary) should (be |have )?", "", details["msg"])
    return re.sub(r" after validation, not \d+$", "", what)


def _choice_hint(group: list[ErrorDetails], value: Any) -> str | None:
    choices = re.findall(r"'([^']*)'", " ".join(_expectation(details) for details in group))
    is_choice = any(details["type"] in {"literal_error", "enum", "union_tag_invalid"} for details in group)
    if is_choice and choices:
        tags = [details.get("ctx", {}).get("tag", value) for details in group]
        return did_you_mean(str(tags[0]), choices)
    if any(details["type"] == "string_type" for details in group) and not isinstance(value, list | dict):
        return f"write it in quotes: '{value}'"
    return None


def _fields_at(schema: type[BaseModel], path: tuple[str, ...]) -> set[str]:
    models = [schema]
    for part in path:
        named = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        # A list index or the key of a free section names no field: the models stay.
        models = [found for annotation in named for found in _models_in(annotation)] if named else models
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _value_at(path: tuple[str, ...], data: Any) -> Any:
    for part in path:
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _source_of(path: tuple[str, ...], sources: Mapping[tuple[str, ...], str], main_source: str) -> str:
    for length in range(len(path), 0, -1):
        if path[:length] in sources:
            return sources[path[:length]]
    below = [source for key, source in sources.items() if key[: len(path)] == path]
    return below[-1] if below and path else main_source
