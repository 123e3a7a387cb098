"""Rows of a manifest: JSON lines in the format of `docs/data.md`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unival.data.fields import MEDIA_COLUMNS, check_row, refuse_constant, resolve_media
from unival.data.lines import Lines
from unival.data.media import MediaRange
from unival.errors import UserError

# Checking a row takes about 20 microseconds; the rows after these are checked when they are read.
MAX_CHECKED_ROWS = 200_000


class ManifestRows:
    """Rows of a JSON-lines file; its lines are checked when it is opened, and read again when they are wanted.

    Args:
        path: The file.
        limit: Use only the first rows.
        media_root: Folder of relative media paths, by default the file's own, which paths may then not leave.
        max_checked: Rows whose format is checked at once.

    Raises:
        UserError: The file is missing or empty, or a line is malformed; names line and column.
    """

    variants = 1

    def __init__(
        self,
        path: str | Path,
        limit: int | None = None,
        media_root: str | Path | None = None,
        max_checked: int = MAX_CHECKED_ROWS,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no such manifest: {path}", fix="give the path of a JSON-lines file")
        self.lines = Lines(path)
        self.root = self.path.parent if media_root is None else Path(media_root)
        self.is_free = media_root is not None
        self.num_rows = min(len(self.lines), limit or len(self.lines))
        for index in range(min(self.num_rows, max_checked)):
            self._parse(index)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        return self._parse(index)

    def where(self, index: int) -> str:
        """Return `file:line` of a row."""
        return self.lines.where(index)

    def _parse(self, index: int) -> dict[str, Any]:
        where = self.where(index)
        row = parse_line(self.lines[index], where)
        row["uid"] = str(row.get("uid", f"{self.path.name}:{where.rpartition(':')[2]}"))
        for column in MEDIA_COLUMNS:
            if column in row:
                row[column] = resolve_media(row[column], self.root, self.is_free, where)
                if isinstance(row[column], MediaRange):
                    row.setdefault("media_id", f"{row[column].file}:{row[column].offset}")
        return row


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Parse and check one line.

    Raises:
        UserError: It is no JSON object, or a field has the wrong type.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError("the manifest is not UTF-8 text", where=f"{where}:{error.start + 1}") from None
    try:
        row = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"not a JSON line: {error.msg}", where=f"{where}:{error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not a JSON line: {error}", where=where) from None
    if not isinstance(row, dict):
        raise UserError("a row must be a JSON object", where=where)
    check_row(row, where)
    return row
