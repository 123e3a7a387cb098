"""``soups methods``: what ``--method`` may be."""

from __future__ import annotations

import json
from typing import Any

from soups.commands import options
from soups.commands.output import show


def command(as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """List the merge methods, their parameters and defaults."""
    from soups.methods import get_method, method_names

    table = []
    for method_name in method_names():
        method = get_method(method_name)
        summary = (method.module.__doc__ or "").partition("\n")[0]
        table.append({"name": method_name, "summary": summary, "base": method.base, "params": dict(method.params)})
    lines = [line for row in table for line in _lines(row)]
    show({"methods": table}, lines, as_json)


def _lines(row: dict[str, Any]) -> list[str]:
    params = ", ".join(f"{name}={json.dumps(default)}" for name, default in row["params"].items())
    first = f"{row['name']:<16} base {row['base']:<9} {row['summary']}"
    return [first, *([f"{'':<17}--param {params}"] if params else [])]
