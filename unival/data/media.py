"""Open a media file from a path, a part of a file, bytes or a file object; its size is checked before decoding."""

import binascii
import glob
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pybase64 import b64decode  # ten times as fast as Python's own, the longest part of reading a row of a table

from unival.errors import UserError, did_you_mean

MAX_FILE_BYTES = 2_000_000_000
# What a person may give for a medium; arrays of videos and sounds only where a model is at hand, as in a pipeline.
ACCEPTED = {
    "image": "a path, bytes, a file opened with 'rb', a Pillow image or a uint8 array (height, width, 3)",
    "video": "a path, bytes, a file opened with 'rb' or, to a pipeline, a uint8 array (frames, height, width, 3)",
    "audio": "a path, bytes, a file opened with 'rb' or, to a pipeline, an array (samples,) of floats from -1 to 1",
}
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One medium that lies inside a larger file: a member of a tar archive, a base64 cell of a table.

    Attributes:
        file: Path of the larger file.
        offset, num_bytes: Where the medium stands in it.
        is_base64: The bytes are base64 text, of the URL-safe or the standard alphabet.
        name: What errors call it; by default file and offset.
    """

    file: str
    offset: int
    num_bytes: int
    is_base64: bool = False
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.file} at byte {self.offset:,}"

    def read(self, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Return the content.

        Raises:
            UserError: The file is missing or shorter, the content too large or no base64.
        """
        if self.num_bytes > max_bytes:
            what = f"the medium has {self.num_bytes:,} bytes, more than the {max_bytes:,} allowed"
            raise UserError(what, where=str(self))
        with _open_path(Path(self.file), "media") as file:
            content = os.pread(file.fileno(), self.num_bytes, self.offset)  # no buffer in between
        if len(content) < self.num_bytes:
            what = f"the file ends before the medium: {len(content):,} of {self.num_bytes:,} bytes are there"
            raise UserError(what, where=str(self))
        return decode_base64(content, str(self)) if self.is_base64 else content


MediaSource = str | Path | bytes | BinaryIO | MediaRange


def decode_base64(text: bytes, where: str) -> bytes:
    """Decode base64 of either alphabet, with or without padding; a foreign character is an error, not skipped.

    Raises:
        UserError: Names `where`.
    """
    text = text.strip()
    text += b"=" * (-len(text) % 4)
    with suppress(binascii.Error):  # in all but rare cases; the others are told apart below
        return b64decode(text, None if b"+" in text or b"/" in text else b"-_", validate=True)
    try:
        return binascii.a2b_base64(text.translate(_STANDARD_ALPHABET), strict_mode=True)
    except binascii.Error as error:
        fix = "the cell is cut off or holds something else"
        raise UserError(f"not base64: {str(error).lower()}", where=where, fix=fix) from None


def open_media(source: MediaSource, kind: str, max_bytes: int = MAX_FILE_BYTES) -> tuple[BinaryIO, str]:
    """Return a seekable binary stream and the name by which errors call it.

    A path is only ever opened as a local file: an address such as `http://...` is a file that does not exist.
    The caller closes the stream; one that it was given itself stays the business of whoever made it.

    Args:
        source: Path, content, or an open binary file.
        kind: "image", "video" or "audio", for messages.
        max_bytes: Refuse anything larger.

    Raises:
        UserError: The source is something else, or the file is missing, a folder, empty, unreadable or too large.
    """
    if isinstance(source, MediaRange):
        stream: BinaryIO = io.BytesIO(source.read(max_bytes))
        name = str(source)
    elif isinstance(source, bytes):
        stream = io.BytesIO(source)
        name = f"<{kind} of {len(source):,} bytes>"
    elif isinstance(source, str | Path):
        stream, name = _open_path(Path(source), kind), str(source)
    elif isinstance(source, io.TextIOBase) or not hasattr(source, "seekable"):
        raise UserError(f"cannot read {kind} from {type(source).__name__}", fix=f"give {ACCEPTED[kind]}")
    elif getattr(source, "closed", False):
        raise UserError(f"the {kind} file is closed", fix="read from it inside its `with` block")
    else:
        stream, name = source, str(getattr(source, "name", f"<{kind} file>"))
        if not stream.seekable():
            stream = io.BytesIO(stream.read(max_bytes + 1))
    num_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if num_bytes == 0 or num_bytes > max_bytes:
        what = "is empty" if num_bytes == 0 else f"has {num_bytes:,} bytes, more than the {max_bytes:,} allowed"
        if isinstance(source, str | Path):
            stream.close()
        raise UserError(f"the {kind} file {what}", where=name)
    return stream, name


def looks_like_text(stream: BinaryIO) -> bool:
    """Return whether the first kilobyte is text, the most common reason why a file cannot be decoded."""
    stream.seek(0)
    head = stream.read(1024)
    if b"\0" in head:
        return False
    try:
        text = head[:1000].decode("utf-8", errors="strict") if head.isascii() else head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # the cut at one kilobyte may fall inside a character
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c.isspace() for c in text)


def _open_path(path: Path, kind: str) -> BinaryIO:
    try:
        if not path.is_file() and path.exists():  # to open a pipe waits for somebody who writes to it
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise UserError(f"expected one {kind} file, got {what}", where=str(path))
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"the {kind} file does not exist", str(path), _similar_name(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open the {kind} file: {reason}", where=str(path)) from None


def _similar_name(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}'"
    if "\\" in path.name:
        return "write paths with / instead of \\"
    hint = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    return hint.split(" valid:")[0] if hint.startswith("did you mean") else None


def files_of(patterns: Sequence[str]) -> list[str]:
    """Return the files that names and patterns lead to.

    Raises:
        UserError: One of them leads to none.
    """
    paths: list[str] = []
    for pattern in patterns:
        if os.path.exists(pattern):  # noqa: PTH110 (of a name that is too long, Path.exists raises)
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else []  # noqa: PTH207 (patterns may be absolute)
        if not found:
            raise UserError(f"no such file: {pattern}", fix="check the path or the pattern")
        paths += found
    return paths
