"""Rows of the original's tab-separated files, read in any order (specification 4.1).

One row per line, no header. A cell with a medium holds its path, or its bytes as base64; the bytes stay where they are
until the medium is wanted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unival.data.fields import MEDIA_COLUMNS, check_row, parse_answers, parse_text, resolve_media
from unival.data.image import image_size
from unival.data.lines import Lines
from unival.data.media import MediaRange
from unival.errors import UserError, did_you_mean

# Columns of the original's tasks (specification 4.2 to 4.10); a column may feed two fields.
LAYOUTS: dict[str, dict[str, int]] = {
    "caption": {"uid": 0, "image_id": 1, "captions": 2, "objects": 3, "image": 4},
    "vqa_gen": {"uid": 0, "question_id": 0, "image_id": 1, "question": 2, "answers": 3, "objects": 4, "image": 5},
    "refcoco": {"uid": 0, "image_id": 1, "text": 2, "box": 3, "image": 4},
    "snli_ve": {"uid": 0, "image_id": 1, "image": 2, "text": 3, "premise": 4, "label": 5},
    "image_gen": {"uid": 0, "codes": 1, "caption": 2},
    "video_caption": {"uid": 0, "video_id": 1, "captions": 2, "video": 4},
    "video_vqa_gen": {"uid": 0, "question_id": 0, "video_id": 1, "question": 2, "answers": 3, "objects": 4, "video": 5},
    "audio_caption": {"uid": 0, "audio_id": 1, "captions": 2, "audio": 4},
    "unify_task": {"uid": 0, "medium": 1, "caption": 2, "question": 3, "answers_or_box": 4, "objects": 5}
    | {"dataset": 6, "type": 7},
}
MAX_PATH_BYTES = 1024


class TableRows:
    """Rows of a TSV file.

    Args:
        path: The file.
        columns: A name of `LAYOUTS`, field names in the order of the columns (`-` skips one), or the number of the
            column, from 0, of each field.
        limit: Use only the first rows.
        media_root: Folder of relative media paths, by default the file's own, which paths may then not leave.

    Raises:
        UserError: The file is missing, empty or no text, rows differ in their number of columns, or there is no such
            column; reading a row: a cell is malformed. Names row and column.
    """

    variants = 1

    def __init__(
        self,
        path: str | Path,
        columns: str | Sequence[str] | Mapping[str, int],
        limit: int | None = None,
        media_root: str | Path | None = None,
    ) -> None:
        self.lines = Lines(path)
        self.path = Path(path)
        self.columns = column_numbers(columns)
        num_columns = self.lines.check_columns()
        expected = max(self.columns.values()) + 1
        if isinstance(columns, str) and num_columns > expected:
            what = f"the rows have {num_columns} columns, the layout {columns!r} has {expected}"
            raise UserError(what, where=f"{path}:1", fix="name the fields of all columns, `-` for one to skip")
        for name, number in self.columns.items():
            if not 0 <= number < num_columns:
                what = f"column {number} for {name!r} does not exist: the rows have {num_columns} columns"
                raise UserError(what, where=f"{path}:1", fix="columns are counted from 0")
        self.root = self.path.parent if media_root is None else Path(media_root)
        self.is_free = media_root is not None
        self.num_rows = min(len(self.lines), limit or len(self.lines))

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        where = self.where(index)
        cells = self.lines.cells(index)
        row: dict[str, Any] = {}
        for name, number in self.columns.items():
            spot = f"{where}, column {number} ({name})"
            offset, length, content = cells[number]
            if name in (*MEDIA_COLUMNS, "medium"):
                row[name] = self._medium(content, offset, length, spot)
            else:
                text = self.lines.span(index)[1].split(b"\t")[number] if content is None else content
                row[name] = parse_text(name, _text(text, spot), spot)
        return _finished(row, str(self.path), where)

    def where(self, index: int) -> str:
        """Return `file:line` of a row."""
        return self.lines.where(index)

    def _medium(self, cell: bytes | None, offset: int, length: int, where: str) -> str | MediaRange:
        if not length:
            raise UserError("the cell of the medium is empty", where=where)
        # Neither alphabet of base64 has a dot, and every file name here has one.
        if cell is not None and length <= MAX_PATH_BYTES and b"." in cell:
            return resolve_media(_text(cell, where), self.root, self.is_free, where)
        return MediaRange(str(self.path), offset, length, True, where)


def column_numbers(columns: str | Sequence[str] | Mapping[str, int]) -> dict[str, int]:
    """Return the number of each field's column.

    Raises:
        UserError: There is no such layout.
    """
    if isinstance(columns, str):
        if columns not in LAYOUTS:
            raise UserError(f"unknown layout {columns!r}", where="columns", fix=did_you_mean(columns, LAYOUTS))
        return LAYOUTS[columns]
    if isinstance(columns, Mapping):
        return dict(columns)
    numbered = next((name for name in columns if name.isdigit()), None)
    if numbered is not None:
        fix = "give the names of the fields in the order of the columns, such as uid,-,captions,-,image"
        raise UserError(f"{numbered!r} is a number, not the name of a field", where="columns", fix=fix)
    return {name: number for number, name in enumerate(columns) if name != "-"}


def _text(cell: bytes, where: str) -> str:
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start}", where=where) from None


def _finished(row: dict[str, Any], file: str, where: str) -> dict[str, Any]:
    """Give a row its derived fields, and check it."""
    if "answers_or_box" in row:
        row = _pretraining_row(row, where)
    if isinstance(row.get("answers"), dict):
        row |= row["answers"]
    row["uid"] = str(row.get("uid", where))
    if not row["uid"]:
        raise UserError("the identity is empty", where=where)
    for column in MEDIA_COLUMNS:
        medium = row.get(column)
        if isinstance(medium, MediaRange):  # one picture stands in several rows; without an id each is its own
            name = row.get(f"{column}_id")
            row.setdefault("media_id", f"{file}#{name}" if name else f"{file}@{medium.offset}")
    if "box" in row and "image" in row and "width" not in row:
        row["width"], row["height"] = image_size(row["image"])
    check_row(row, where)
    return row


def _pretraining_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Name the fields of a row of mixed pretraining data by its type, such as `video_qa` (specification 4.10)."""
    kind = row["type"]
    column = next((name for name in ("video", "audio") if name in kind), "image")
    row[column] = row.pop("medium")
    text = row.pop("answers_or_box")
    if "ground" in kind:
        return row | {"text": row["caption"], "box": parse_text("box", text, where)}
    if "qa" in kind:
        return row | parse_answers(text)
    return row | {"captions": [row["caption"]]}
