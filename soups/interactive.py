"""The front as one self-contained web page: choose a point, see its coefficients, scores and samples."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from soups.results import Result
from soups.state import write_text

MAX_SAMPLES = 8  # shown per point; the page stays small


def save_page(front: Mapping[str, Any], results: Sequence[Result], caption: str, out_dir: Path) -> Path:
    """Write ``front.html``; return its path."""
    write_text(out_dir / "front.html", page(front, results, caption))
    return out_dir / "front.html"


def page(front: Mapping[str, Any], results: Sequence[Result], caption: str) -> str:
    """Return the page: a template and one block of JSON.

    No text of the data can leave that block, because ``<``, ``>`` and ``&`` are written as escapes; the
    script shows it as text only.
    """
    samples = {json.dumps(r.coefficients, sort_keys=True): r.samples[:MAX_SAMPLES] for r in results}
    points = [
        {**point, "samples": samples[json.dumps(point["coefficients"], sort_keys=True)]} for point in front["points"]
    ]
    data = json.dumps({**front, "points": points, "caption": caption}, allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    template = files("soups").joinpath("interactive.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", data)
