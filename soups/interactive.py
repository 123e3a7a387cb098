"""A figure as one self-contained web page: choose a point, see its coefficients, scores and samples."""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from soups.figures.spec import Figure
from soups.state import write_text


def save_page(figure: Figure, out_dir: Path, stem: str) -> Path:
    """Write ``stem.html``; return its path."""
    write_text(out_dir / f"{stem}.html", page(figure))
    return out_dir / f"{stem}.html"


def page(figure: Figure) -> str:
    """Return the page: a template and one block of JSON.

    No text of the data can leave that block, because ``<``, ``>`` and ``&`` are written as escapes; the
    script shows it as text only.
    """
    data = json.dumps(asdict(figure), allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    template = files("soups").joinpath("interactive.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", data)
