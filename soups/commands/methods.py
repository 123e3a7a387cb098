"""``soups methods``: what ``--method`` may be."""

from __future__ import annotations

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
    lines = [f"{row['name']:<16} base {row['base']:<9} {row['summary']}" for row in table]
    show({"methods": table}, lines, as_json)
