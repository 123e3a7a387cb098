"""Markup that text cannot break: whatever is not `Markup` is escaped on its way into an element.

    tag("p", "a < b", class_="note")        # <p class="note">a &lt; b</p>
    tag("p", tag("b", user_text), " end")   # only `Markup` is taken as it is

Pages are made of these elements alone and hold no script. A content security policy says so to the browser, so
that nothing is loaded from anywhere either.
"""

import os
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

MAX_CHARS = 600  # of one text: a report shows predictions, not books
VOID = {"img", "br", "line", "circle", "rect", "path"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        *children: `Markup`, text to escape, None for nothing.
        **attributes: `class_` and `stroke_width` become `class` and `stroke-width`; True stands for an attribute
            without a value, None and False for none. Text is cut and escaped as in children; path data and data
            URIs are therefore `Markup`.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is True:
            parts.append(_key(key))
        elif value is not None and value is not False:
            parts.append(f'{_key(key)}="{join([value])}"')
    start = " ".join(parts)
    return Markup(f"<{start}/>" if name in VOID else f"<{start}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Return children as one piece of markup; all that is not `Markup` is cut to `MAX_CHARS` and escaped."""
    return Markup("".join(c if isinstance(c, Markup) else escape(_cut(c)) for c in children if c is not None))


def visible(value: object) -> str:
    """Return text in which control characters, direction overrides and lone surrogates are written as escapes."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def table(header: Iterable[object], rows: Iterable[Iterable[object]], class_: str | None = None) -> Markup:
    """Return a table; a cell that is no `Markup` is escaped. Columns are styled by position."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_=class_), class_="scroll")


def note(*children: object) -> Markup:
    """Return a grey remark."""
    return tag("p", *children, class_="note")


def page(title: str, *children: object) -> str:
    """Return the whole document."""
    template = files("unival.report").joinpath("page.html").read_text(encoding="utf-8")
    head, tail = template.split("__BODY__")
    return head.replace("__TITLE__", escape(title)) + join(children) + tail


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _cut(value: object) -> str:
    text = visible(value)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}…"
