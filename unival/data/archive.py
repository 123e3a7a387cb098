"""Rows of WebDataset tar archives, read in any order.

One pass over the headers of an archive makes a manifest of byte ranges, kept in the cache folder; after that, rows of
archives are rows of a manifest: no member is ever unpacked, and its name is never used as a path.
"""

import hashlib
import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from unival.atomic import replacing
from unival.data.fields import MEDIA_COLUMNS, check_row, refuse_constant, resolve_media
from unival.data.lines import Lines, index_folder
from unival.errors import UserError, did_you_mean

# What `load_image`, `load_video` and `load_audio` read, by the usual names of the files.
EXTENSIONS = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "tif", "tiff"), "image"),
    **dict.fromkeys(("avif", "avifs", "ppm", "pgm", "pbm", "pnm", "pfm", "ico"), "image"),
    **dict.fromkeys(("jp2", "j2k", "jpx", "jpf", "jpc", "j2c"), "image"),
    **dict.fromkeys(("mp4", "m4v", "mov", "3gp", "3g2", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts"), "video"),
    **dict.fromkeys(("m2ts", "flv", "wmv", "asf", "ogv"), "video"),
    **dict.fromkeys(("wav", "w64", "flac", "ogg", "oga", "opus", "mp3", "mp2", "m4a", "aac", "aiff"), "audio"),
    **dict.fromkeys(("aif", "aifc", "au", "snd", "caf", "wma", "mka"), "audio"),
}
BINARY = frozenset({"npy", "npz", "pth", "pickle", "pkl", "safetensors"})  # never a text, however large
MAX_TEXT_BYTES = 1_000_000
MAX_SHARDS = 100_000
INDEX_VERSION = 2  # counts up when another index would be made of the same archive


class ArchiveRows:
    """Rows of tar archives in the order of their names and members.

    The members of a row share their name up to the first dot of the file name. What follows the dot says what it is:
    a picture, video or sound; `json`, an object whose fields join the row; `txt`, the caption; any other extension, a
    text field of this name, such as `0007.question`. Other members that are no text (`0007.npy`, `0007.seg.png`) are
    passed over.

    Args:
        paths: One path, a pattern with `{000..099}` or `*`, or several of these.
        columns: The extension (or the key of the JSON member) of each field; by default all, under their own names.
        limit: Use only the first rows.

    Raises:
        UserError: An archive is missing, damaged or holds no rows.
    """

    variants = 1

    def __init__(
        self, paths: str | Sequence[str], columns: Mapping[str, str] | None = None, limit: int | None = None
    ) -> None:
        names = [paths] if isinstance(paths, str) else paths
        self.paths = [path for name in names for path in expand(name)]
        self.shards = [Lines(index_archive(path)) for path in self.paths]
        self.columns = columns
        self.ends = list(accumulate(map(len, self.shards)))
        self.num_rows = min(self.ends[-1], limit or self.ends[-1])

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        found, where = self._stored(index), self.where(index)
        row = self._named(found, where)
        for column in MEDIA_COLUMNS:
            if column in found:
                medium = resolve_media(found[column], Path("/"), True, where)
                row |= {column: medium, "media_id": f"{found[column]['file']}:{found[column]['offset']}"}
        check_row(row, where)
        return row

    def _named(self, found: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the fields of a row that are no media, under the names that the user gave."""
        if self.columns is None:
            row = {name: value for name, value in found.items() if name not in MEDIA_COLUMNS}
            return row if "txt" not in row else {"captions": [row.pop("txt")]} | row
        texts = {field: column for field, column in self.columns.items() if EXTENSIONS.get(column) not in found}
        missing = [column for column in texts.values() if column not in found]
        if missing:
            raise UserError(f"the sample has no {missing[0]!r}", where=where, fix=did_you_mean(missing[0], found))
        return {"uid": found["uid"]} | {field: found[column] for field, column in texts.items()}

    def _stored(self, index: int) -> dict[str, Any]:
        shard, offset = self._find(index)
        return json.loads(self.shards[shard][offset])

    def where(self, index: int) -> str:
        """Return `archive, sample NAME` of a row."""
        return f"{self.paths[self._find(index)[0]]}, sample {self._stored(index)['uid']}"

    def _find(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self.ends, index)
        return shard, index - (self.ends[shard - 1] if shard else 0)


def expand(pattern: str) -> list[Path]:
    """Return the files that a pattern stands for: `{000..099}` counts with its zeros, `*` matches what exists.

    Raises:
        UserError: There is none, or they are too many.
    """
    ranges = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if ranges:
        first, last = ranges.groups()
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) <= MAX_SHARDS:
            raise UserError(f"{ranges[0]} counts {len(numbers):,} files", where=pattern)
        width = len(first) if first.startswith("0") else 0
        parts = [f"{pattern[: ranges.start()]}{number:0{width}}{pattern[ranges.end() :]}" for number in numbers]
        return [path for part in parts for path in expand(part)]
    path = Path(pattern)
    found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not found:
        raise UserError(f"no file matches {pattern!r}")
    return found


def index_archive(path: Path) -> Path:
    """Write the manifest of an archive into the cache folder, unless it is there, and return its path.

    Raises:
        UserError: The archive is missing or damaged, or a text member is not UTF-8 or JSON.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"cannot read the archive: {error.strerror}", where=str(path)) from None
    state = f"{INDEX_VERSION}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    index = index_folder() / f"{hashlib.sha256(state.encode()).hexdigest()[:24]}.jsonl"
    if index.is_file():
        return index
    with replacing(index) as file:
        file.writelines(f"{json.dumps(row)}\n" for row in _rows(path))
    return index


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    row: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            _check_end(path)
            for member in archive:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                uid = f"{folder}/{key}" if folder else key
                uid = uid.encode("utf-8", "backslashreplace").decode()  # a name in Latin-1 is no valid text
                if row and row["uid"] != uid:
                    yield row
                    row = {}
                row["uid"] = uid
                row |= _field(archive, path, member, extension.lower())
                vars(archive)["members"] = []  # otherwise the names of all members stay in memory
    except (tarfile.TarError, OSError, EOFError) as error:
        fix = "it must be an uncompressed tar archive"
        raise UserError(f"the archive is damaged: {error}", where=str(path), fix=fix) from None
    if not row:
        raise UserError("the archive holds no sample", where=str(path))
    yield row


def _check_end(path: Path) -> None:
    """Refuse a cut archive, whose remaining members tarfile lists without an error: the end is 1,024 zero bytes."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1024, 0))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("it is cut off")


def _field(archive: tarfile.TarFile, path: Path, member: tarfile.TarInfo, extension: str) -> dict[str, Any]:
    where = f"{path}, member {member.name}"
    column = EXTENSIONS.get(extension)
    if column is not None:
        # The offset is that of the content in the archive.
        return {column: {"file": str(path.resolve()), "offset": member.offset_data, "bytes": member.size}}
    content = archive.extractfile(member)
    if extension.rpartition(".")[2] in EXTENSIONS or extension in BINARY:
        return {}
    if member.size > MAX_TEXT_BYTES or content is None:
        raise UserError(f"a text member of {member.size:,} bytes", where=where)
    try:
        text = content.read().decode("utf-8-sig")
        value = json.loads(text, parse_constant=refuse_constant) if extension == "json" else text.strip()
    except (ValueError, RecursionError) as error:
        if extension not in ("json", "txt", ""):
            return {}
        raise UserError(f"the member cannot be read: {error}", where=where) from None
    if extension != "json":
        return {extension or "txt": value}
    if not isinstance(value, dict):
        raise UserError("a JSON member must hold an object", where=where)
    return {name: part for name, part in value.items() if name not in (*MEDIA_COLUMNS, "uid") and part is not None}
