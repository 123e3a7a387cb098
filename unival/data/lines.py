"""Random access to the lines of a large text file, through the byte offsets of its lines.

The offsets are found in one pass. For a large file they are kept in a cache folder and memory-mapped, so that opening
it again takes no time and several processes share one copy.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unival.atomic import replacing
from unival.errors import UserError

MAX_LINE_BYTES = 32_000_000
MIN_CACHED_BYTES = 64_000_000
_CHUNK_BYTES = 16_000_000
_MARGIN_BYTES = 4096  # read at both ends of a line with a very long cell
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class _Facts:
    """What an index says about its file: which state of it was read, and its columns."""

    path: str
    size: int
    mtime_ns: int
    digest: str  # of both ends, because a copy can keep size and time
    num_columns: int  # of the first line
    odd_line: int  # number of the first line with another count of columns, 0 without
    odd_columns: int
    num_rows: int


class Lines:
    """The lines of a file that hold something, as bytes without the line feed, or carriage return and line feed.

    Args:
        path: A text file. A byte order mark is skipped.

    Raises:
        UserError: The file is missing, empty, holds a NUL byte or a line of more than 32 MB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = -1
        try:
            self._size = self.path.stat().st_size
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self._spans, self._facts = self._index()  # (n, 3) int64: start, end, line number
        except IsADirectoryError:
            raise UserError("expected a file, got a folder", where=str(path)) from None
        except FileNotFoundError:
            raise UserError(f"no such file: {path}") from None
        except OSError as error:
            raise UserError(f"cannot read the file: {error.strerror}", where=str(path)) from None
        if len(self._spans) == 0:
            raise UserError("the file has no rows", where=str(path))

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        return self.span(index)[1]

    def span(self, index: int) -> tuple[int, bytes]:
        """Return the offset of a line and its content.

        Raises:
            UserError: The file is not the one that was indexed.
        """
        if not 0 <= index < len(self._spans):
            raise IndexError(index)
        start, end, _ = map(int, self._spans[index])
        return start, self._part(index, start, end).removesuffix(b"\r")

    def cells(self, index: int) -> list[tuple[int, int, bytes | None]]:
        """Return offset, length and content of the cells of a line; the content of a very long one is left out.

        Raises:
            UserError: The file is not the one that was indexed.
        """
        start, end, _ = map(int, self._spans[index])
        if end - start > 16 * _MARGIN_BYTES:
            head = self._part(index, start, start + _MARGIN_BYTES).split(b"\t")
            tail = self._part(index, end - _MARGIN_BYTES, end).removesuffix(b"\r").split(b"\t")
            if len(head) + len(tail) - 1 == self._facts.num_columns:
                known = sum(map(len, head[:-1])) + len(head) - 1, sum(map(len, tail[1:])) + len(tail) - 1
                ends_with_return = _MARGIN_BYTES - sum(map(len, tail)) - len(tail) + 1
                between = end - start - sum(known) - ends_with_return
                return _placed(start, [*head[:-1], between, *tail[1:]])
        start, line = self.span(index)
        return _placed(start, line.split(b"\t"))

    def _part(self, index: int, start: int, end: int) -> bytes:
        """Return bytes of a line, and check that it still starts and ends where it did."""
        first, last, _ = map(int, self._spans[index])
        before, after = int(start == first > 0), int(end == last)
        read = os.pread(self._file, end - start + before + after, start - before)
        part = read[before : before + end - start]
        ends = read[before + end - start :]
        is_start = not before or read[:1] in ((b"\n", _BOM[-1:]) if start == len(_BOM) else (b"\n",))
        is_end = not after or ends == b"\n" or (not ends and start + len(part) == self._size)
        if len(part) < end - start or not (is_start and is_end) or b"\n" in part:
            raise UserError("the file changed while it was in use", where=self.where(index), fix="start again")
        return part

    def where(self, index: int) -> str:
        """Return `file:line` with the line number that an editor shows."""
        return f"{self.path}:{int(self._spans[index, 2])}"

    def check_columns(self) -> int:
        """Return the number of tab-separated columns.

        Raises:
            UserError: Lines differ in it.
        """
        facts = self._facts
        if facts.odd_line:
            what = f"the row has {facts.odd_columns} columns, the first row has {facts.num_columns}"
            raise UserError(what, where=f"{self.path}:{facts.odd_line}", fix="repair or remove this row")
        return facts.num_columns

    def _index(self) -> tuple[np.ndarray, _Facts]:
        cached = index_folder() / f"{hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:24]}.lines"
        if self._size < MIN_CACHED_BYTES:
            return self._scan()
        found = _load(cached, self._state())
        if found is None:
            found = self._scan()
            _save(cached, *found)
        return found

    def _state(self) -> tuple[str, int, int, str]:
        stat = os.fstat(self._file)
        ends = os.pread(self._file, 65536, 0) + os.pread(self._file, 65536, max(stat.st_size - 65536, 0))
        return str(self.path.resolve()), stat.st_size, stat.st_mtime_ns, hashlib.sha256(ends).hexdigest()

    def _scan(self) -> tuple[np.ndarray, _Facts]:
        state, ends, tabs, position = self._state(), [], [], 0
        if os.pread(self._file, len(_GZIP), 0) == _GZIP:
            fix = f"unpack it first: gunzip {self.path.name} (a .tgz: tar -xzf {self.path.name})"
            raise UserError("the file is packed with gzip", where=str(self.path), fix=fix)
        while chunk := os.pread(self._file, _CHUNK_BYTES, position):
            values = np.frombuffer(chunk, np.uint8)
            marks = np.flatnonzero(values <= 10)  # one pass finds line feeds, tabs and NUL
            kinds = values[marks]
            if not kinds.all():
                line = sum(map(len, ends)) + chunk[: chunk.index(b"\0")].count(b"\n") + 1
                raise UserError("a NUL byte: this is no text, or it is damaged", where=f"{self.path}:{line}")
            ends.append(marks[kinds == 10] + position)
            tabs.append(marks[kinds == 9] + position)
            position += len(chunk)
        if position == 0:
            return np.zeros((0, 3), np.int64), _Facts(*state, 0, 0, 0, 0)
        if os.pread(self._file, 1, position - 1) != b"\n":
            ends.append(np.array([position]))
        stops = np.concatenate(ends)
        starts = np.concatenate([[len(_BOM) if os.pread(self._file, 3, 0) == _BOM else 0], stops[:-1] + 1])
        filled = self._filled(starts, stops)
        spans = np.stack([starts, stops, np.arange(1, len(stops) + 1)], axis=1)[filled]
        counts = np.diff(np.searchsorted(np.concatenate(tabs), stops), prepend=0)[filled] + 1
        odd = np.flatnonzero(counts != counts[0]) if len(counts) else []
        first = int(counts[0]) if len(counts) else 0
        found = (int(spans[odd[0], 2]), int(counts[odd[0]])) if len(odd) else (0, 0)
        return spans, _Facts(*state, first, *found, len(spans))

    def _filled(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        lengths = stops - starts
        longest = int(lengths.argmax()) if len(lengths) else 0
        if len(lengths) and lengths[longest] > MAX_LINE_BYTES:
            what = f"a line of {lengths[longest]:,} bytes, more than the {MAX_LINE_BYTES:,} allowed"
            raise UserError(what, where=f"{self.path}:{longest + 1}")
        filled = lengths > 0
        for index in np.flatnonzero(filled & (lengths < 64)):
            filled[index] = bool(os.pread(self._file, int(lengths[index]), int(starts[index])).strip(b" \r"))
        return filled


def _placed(start: int, cells: Sequence[bytes | int]) -> list[tuple[int, int, bytes | None]]:
    """Return offset, length and content of cells in a row; a number is the length of one that was not read."""
    placed = []
    for cell in cells:
        length, content = (cell, None) if isinstance(cell, int) else (len(cell), cell)
        placed.append((start, length, content))
        start += length + 1
    return placed


def index_folder() -> Path:
    """Return the folder of indices: `UNIVAL_CACHE`, or `unival` in the user's cache folder."""
    chosen = os.environ.get("UNIVAL_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unival"


def _save(path: Path, spans: np.ndarray, facts: _Facts) -> None:
    """Write an index; a folder that cannot be written is no error."""
    with suppress(OSError), replacing(path, "wb") as file:
        head = json.dumps(asdict(facts)).encode()
        file.write(len(head).to_bytes(8, "little") + head)
        file.write(np.ascontiguousarray(spans, dtype="<i8").data)


def _load(path: Path, state: tuple[str, int, int, str]) -> tuple[np.ndarray, _Facts] | None:
    """Return a stored index, or None where there is none, it is damaged, or its file is another now."""
    try:
        with path.open("rb") as file:
            facts = _Facts(**json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 65536))))
            offset = file.tell()
        if (facts.path, facts.size, facts.mtime_ns, facts.digest) != state:
            return None
        spans = np.memmap(path, "<i8", "r", offset).reshape(-1, 3)
        return (spans, facts) if len(spans) == facts.num_rows else None
    except (OSError, ValueError, TypeError):
        return None
