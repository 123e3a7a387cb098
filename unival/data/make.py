"""A manifest for one's own data: from a CSV file with a header, or from a folder of media."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from unival.atomic import replacing
from unival.data.archive import EXTENSIONS
from unival.data.fields import MEDIA_COLUMNS, check_row, parse_text, refuse_constant, resolve_media
from unival.data.image import image_size
from unival.errors import UserError, did_you_mean

# Headers that people use, by the field they mean.
ALIASES = {
    "uid": ("uid", "id"),
    "medium": ("file", "path", "filename", "file_name", "filepath", "media"),
    "image": ("image", "image_path", "img"),
    "video": ("video", "video_path"),
    "audio": ("audio", "audio_path", "sound"),
    "captions": ("captions",),
    "caption": ("caption", "title", "description"),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "text": ("text", "expression", "statement", "hypothesis"),
    "label": ("label",),
    "box": ("box",),
}
FIELDS = {alias: field for field, aliases in ALIASES.items() for alias in aliases}
CORNERS = ("x0", "y0", "x1", "y1")
MAX_CELL_CHARS = 10_000_000


def rows_of_csv(
    path: str | Path, fields: Mapping[str, str] | None = None, has_media: bool = True
) -> Iterator[dict[str, Any]]:
    """Yield manifest rows of a CSV file (commas, semicolons or tabs); media paths are relative to its folder.

    Lists are written with `&&`, boxes as `x0,y0,x1,y1` or in four columns; the kind of a `file` follows from its name.

    Args:
        path: The file; its first line names the columns.
        fields: The column of each field, where its header is not understood; a field has the names of headers too.
        has_media: Whether every row names a medium; rows of texts alone have none.

    Raises:
        UserError: The file is missing, empty or malformed, or no column is understood; names the line.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError("a folder, not a CSV file", where=str(path), fix="--from folder")
    csv.field_size_limit(MAX_CELL_CHARS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = _separator(file)
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            columns = _columns(reader.fieldnames or [], fields or {}, str(path), has_media)
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if None in cells or None in cells.values():
                    is_more, num_columns = None in cells, len(reader.fieldnames or [])
                    what = f"the row has {'more' if is_more else 'fewer'} cells than the header ({num_columns})"
                    fix = f"a text that holds {separator!r} stands in double quotes" if is_more else None
                    raise UserError(what, where, fix)
                yield _row(cells, columns, path.parent, where)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", fix="check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text at byte {error.start}", str(path), "save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"the file cannot be read: {error}", where=str(path)) from None


def left_out_of_csv(path: str | Path, fields: Mapping[str, str] | None = None, has_media: bool = True) -> list[str]:
    """Return the columns that `rows_of_csv` makes nothing of, in their order."""
    path = Path(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, delimiter=_separator(file)), [])
    columns = _columns(header, fields or {}, str(path), has_media)
    corners = set(CORNERS) <= columns.keys()
    used = {column for field, column in columns.items() if corners or field not in CORNERS}
    return [name for name in header if name not in used]


def rows_of_folder(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield a row for every picture, video and sound below a folder, in the order of their names.

    A text file beside it of the same name (`7.txt` for `7.png`) holds its captions, one per line; a JSON file its
    fields. Linked folders are not entered.

    Raises:
        UserError: There is no such folder, a text or JSON file cannot be read, or a name is not valid Unicode.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", fix="--from csv" if folder.is_file() else "check the path")
    for path in sorted(folder.rglob("*")):
        column = _column_of(path)
        if column is None:
            continue
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError("the name of the file is not valid Unicode", where=str(path), fix="rename it") from None
        row: dict[str, Any] = {"uid": name, column: name}
        try:
            if path.with_suffix(".json").is_file():
                text = path.with_suffix(".json").read_text(encoding="utf-8-sig")
                fields = json.loads(text, parse_constant=refuse_constant)
                row |= {key: value for key, value in dict(fields).items() if key not in MEDIA_COLUMNS}
            if path.with_suffix(".txt").is_file():
                lines = path.with_suffix(".txt").read_text(encoding="utf-8-sig").split("\n")
                row["captions"] = [line.strip() for line in lines if line.strip()]
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise UserError(f"the text beside it cannot be read: {error}", where=str(path)) from None
        check_row(row, str(path))
        yield _with_size(row, path)


def left_out_of_folder(folder: str | Path, manifest: str | Path) -> list[str]:
    """Return what `rows_of_folder` makes nothing of, by name: other files, linked folders, texts beside no medium.

    Args:
        folder: The same folder.
        manifest: The file that is written, which may lie in the folder and is not named; nor are hidden files.
    """
    folder, manifest = Path(folder), Path(manifest)
    written = manifest.parent.resolve() / manifest.name
    entries = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    media = [path for path in entries if _column_of(path) is not None]
    used = {*media, *(path.with_suffix(suffix) for path in media for suffix in (".txt", ".json"))}
    left = [path for path in entries if path not in used and not path.name.startswith(".")]
    names = [f"{path.relative_to(folder).as_posix()}{'/' if path.is_dir() else ''}" for path in left]
    return [name for name in names if folder.resolve() / name != written]


def write_manifest(rows: Iterable[Mapping[str, Any]], path: str | Path, is_replacing: bool = False) -> int:
    """Write rows as a manifest and return their number; nothing stays behind when one of them is wrong.

    Raises:
        UserError: The file exists, cannot be written, or there is no row.
    """
    path = Path(path)
    if path.exists() and not is_replacing:
        raise UserError(f"{path} exists", fix="choose another --out, or add --force")
    num_rows, rows = 0, iter(rows)
    first = next(rows, None)  # before a folder is made for the file
    if first is None:
        fix = "give a CSV file with rows, or a folder with files such as a.jpg, a.png, a.mp4, a.wav"
        raise UserError("there is nothing to write: no rows were found", fix=fix)
    try:
        with replacing(path) as file:
            for row in chain([first], rows):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                num_rows += 1
    except OSError as error:
        what = f"cannot write the manifest: {error.strerror}"
        raise UserError(what, where=str(path), fix="choose another --out") from None
    return num_rows


def _separator(file: TextIO) -> str:
    """Return what separates the cells of a file, and go back to its beginning."""
    head = file.readline()
    file.seek(0)
    return max(",;\t", key=head.count)


def _column_of(path: Path) -> str | None:
    """Return the column of a media file; None for anything else, and hidden files."""
    column = EXTENSIONS.get(path.suffix.lower().removeprefix("."))
    return column if path.is_file() and not path.name.startswith(".") else None


def _columns(header: Iterable[str], given: Mapping[str, str], where: str, has_media: bool) -> dict[str, str]:
    """Return the column of each field."""
    names, fields = list(header), {FIELDS.get(name, name): column for name, column in given.items()}
    if len(fields) < len(given):
        raise UserError(
            f"one field is given twice: {', '.join(given)}", where=where, fix=f"fields: {', '.join(ALIASES)}"
        )
    plain = [name.strip().lower() for name in names]
    by_name = dict(zip(plain, names, strict=True))
    twice = next((name for index, name in enumerate(plain) if name and name in plain[:index]), None)
    if twice is not None:
        raise UserError(f"two columns are called {twice!r}", where=where, fix="rename one of them")
    for field, name in fields.items():
        if name not in names:
            raise UserError(f"there is no column {name!r} for {field!r}", where=where, fix=did_you_mean(name, names))
    if "bbox" in by_name and "box" not in fields:
        fix = "if its four numbers are x0, y0, x1, y1: --field box=bbox; else turn them, or rename it"
        raise UserError("a column `bbox` may be x, y, width, height, as in COCO", where=where, fix=fix)
    known = ((field, by_name[alias]) for field, aliases in ALIASES.items() for alias in aliases if alias in by_name)
    taken, found = set(fields.values()), dict(fields)
    for field, name in known:
        if name not in taken:
            found.setdefault(field, name)  # the first name of a field is the one that means it most
    found |= {corner: by_name[corner] for corner in CORNERS if corner in by_name}
    media = found.keys() & {"medium", *MEDIA_COLUMNS}
    listed = ", ".join(names) or "missing"
    if has_media and not media:
        fix = f"name it with --field image=COLUMN (texts alone: --no-media); the columns are {listed}"
        raise UserError("no column holds the paths of media", where=where, fix=fix)
    if not has_media and (media or not found):
        what = "a column holds the paths of media" if media else "no column is understood"
        raise UserError(what, where, f"leave --no-media out, or name columns with --field; the columns are {listed}")
    return found


def _row(cells: Mapping[str, str], columns: Mapping[str, str], root: Path, where: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field, column in columns.items():
        cell = cells[column].strip()
        if not cell or field in CORNERS:
            continue
        if field == "medium":
            field = EXTENSIONS.get(Path(cell).suffix.lower().removeprefix("."), "")
            if not field:
                raise UserError(f"neither picture, video nor sound: {cell!r}", where=where)
        row[field] = parse_text(field, cell, where)
        if isinstance(row[field], dict):  # answers and their confidences
            row |= row[field]
    if set(CORNERS) <= columns.keys():
        row["box"] = parse_text("box", ",".join(cells[columns[corner]] for corner in CORNERS), where)
    check_row(row, where)
    if not columns.keys() & {"medium", *MEDIA_COLUMNS}:  # texts alone
        return row
    medium = next((row[column] for column in MEDIA_COLUMNS if column in row), None)
    if medium is None:
        raise UserError("the row names no medium", where=where)
    try:
        return _with_size(row, Path(str(resolve_media(medium, root, False, where))))
    except UserError as error:
        fix = "paths are relative to the folder of the CSV file" if "leaves the folder" in error.what else error.fix
        raise UserError(error.what, error.where, fix) from None


def _with_size(row: dict[str, Any], path: Path) -> dict[str, Any]:
    if "image" in row and "box" in row and "width" not in row:
        row["width"], row["height"] = image_size(path)
    return row
