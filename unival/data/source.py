"""Rows: flat records that tasks turn into examples, from the embedded world or from a manifest.

A manifest is a JSON-lines file; one line per row, media columns hold paths relative to the file:
{"uid": "7", "image": "images/7.png", "captions": ["a red apple above a cat"]}
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from unival.batch import Modality
from unival.errors import UserError, did_you_mean
from unival.schema import SourceConfig

MEDIA_COLUMNS = ("image", "video", "audio")


class Source(Protocol):
    """Random access to rows. Row `i * variants + k` is the k-th row about medium `i`."""

    variants: int

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row."""
        ...


class ManifestRows:
    """Rows of a JSON-lines file."""

    variants = 1

    def __init__(self, path: str | Path, limit: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no such manifest: {path}", fix="give the path of a JSON-lines file")
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")  # splitlines() would also cut at U+2028
        except UnicodeDecodeError:
            raise UserError("the manifest is not UTF-8 text", where=str(path)) from None
        self.rows = [self._parse(number, line) for number, line in enumerate(lines, start=1) if line.strip()][:limit]
        if not self.rows:
            raise UserError("the manifest has no rows", where=str(path))

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        where = f"{self.path}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"not a JSON line: {error.msg}", where=f"{where}:{error.colno}") from None
        if not isinstance(row, dict):
            raise UserError("a row must be a JSON object", where=where)
        row.setdefault("uid", f"{self.path.name}:{number}")
        row["uid"] = str(row["uid"])
        for column in MEDIA_COLUMNS:
            if column in row:
                if not isinstance(row[column], str):
                    raise UserError(f"{column} must be a path, got {json.dumps(row[column])}", where=where)
                row[column] = str(self.path.parent / row[column])
        return row

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]


def open_source(config: SourceConfig, task: str, modality: Modality) -> Source:
    """Open the rows of a task.

    Raises:
        UserError: If the manifest is missing or malformed, or the world has no such content or style.
    """
    if config.manifest is not None:
        return ManifestRows(config.manifest, config.limit)
    from unival.data.world_rows import CONTENTS, WorldRows

    content = config.content or task
    if (modality, content) not in CONTENTS:
        known = [c for m, c in CONTENTS if m == modality]
        raise UserError(f"the embedded world has no {modality} rows for {content!r}", fix=did_you_mean(content, known))
    assert config.world is not None
    styles = tuple(config.styles) if config.styles else None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()}
    return WorldRows(content, modality, config.world, styles, config.limit, tuple(sorted(options.items())))


@lru_cache(maxsize=8)
def permutation(length: int, seed: int, epoch: int) -> Any:
    """Return the order of rows of one epoch."""
    import numpy as np

    return np.random.default_rng((seed, epoch, length)).permutation(length)
