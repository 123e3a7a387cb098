"""Markup of the report: numbers with intervals, tables, pictures, statements. Text of the data never becomes markup."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = {"supported": "holds", "contradicted": "does not hold", "undecided": "is not decided"}


def text(value: object) -> str:
    """Return text that is no markup."""
    return html.escape(str(value))


def shown(value: float) -> str:
    """Return a number with three digits, a true minus before it."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def estimate(cell: Mapping[str, Any] | None) -> str:
    """Return a value and its interval."""
    if cell is None:
        return ""
    value = f'<span class="num">{shown(cell["value"])}</span>'
    if cell["low"] == cell["high"]:
        return value
    return f'{value} <span class="ci">{shown(cell["low"])} to {shown(cell["high"])}</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table of cells that are markup already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><tr>{top}</tr>{body}</table></div>'


def picture(path: Path, name: str) -> str:
    """Return a picture as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{text(name)}" src="data:image/png;base64,{data}"></figure>'


def word(verdict: str) -> str:
    """Return a verdict in words and colour."""
    return f'<span class="{verdict}">{WORDS[verdict]}</span>'


def card(title: str, big: str, note: str) -> str:
    """Return one statement."""
    return f'<div class="card"><b>{title}</b><span class="big">{big}</span><p>{note}</p></div>'
