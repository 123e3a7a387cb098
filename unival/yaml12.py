"""YAML read and written by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema).

PyYAML follows YAML 1.1, where `1e-4` is text, `no` is false, `010` is eight and `12:30` is 750. Here a number
looks like a number and every other word is text. Aliases and merge keys are refused: a value stands where it
is used.
"""

import re
from typing import Any

import yaml

_BOOL, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
_PATTERNS = {
    _NULL: (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _BOOL: (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    _INT: (r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    _FLOAT: (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                problem="aliases are not allowed, write the value out or use 'extends'",
                problem_mark=event.start_mark,  # pyright: ignore[reportAttributeAccessIssue]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        # A key is always text: `1: x` and `true: x` are the keys "1" and "true".
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or 1.2 would read as something else; writes no aliases."""

    # A copy per letter, because PyYAML shares the lists between its classes.
    yaml_implicit_resolvers = {letter: list(rules) for letter, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _scalar(convert: Any) -> Any:
    return lambda loader, node: convert(loader.construct_scalar(node))


def _float(text: str) -> float:
    return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


for _tag, (_pattern, _letters) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _letters)
_Loader.add_constructor(_INT, _scalar(lambda text: int(text.replace("_", ""))))
_Loader.add_constructor(_FLOAT, _scalar(lambda text: _float(text.lower())))
_Loader.add_constructor(_BOOL, _scalar(lambda text: text.lower() == "true"))


def parse_yaml(text: str) -> Any:
    """Parse one YAML document into dicts with text keys, lists, numbers, booleans, text and None.

    Raises:
        yaml.YAMLError: The text is no YAML, repeats a key, or uses an alias or a tag that builds an object.
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(value: Any) -> str:
    """Return block-style YAML in the given key order that `parse_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
