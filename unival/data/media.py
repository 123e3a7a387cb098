"""Open a media file from a path, bytes or a file object, with its size checked before anything is decoded."""

import io
from pathlib import Path
from typing import BinaryIO

from unival.errors import UserError, did_you_mean

MediaSource = str | Path | bytes | BinaryIO
MAX_FILE_BYTES = 2_000_000_000


def open_media(source: MediaSource, kind: str, max_bytes: int = MAX_FILE_BYTES) -> tuple[BinaryIO, str]:
    """Return a seekable binary stream and the name by which errors call it.

    A path is only ever opened as a local file: an address such as `http://...` is a file that does not exist.
    The caller closes the stream; one that it was given itself stays the business of whoever made it.

    Args:
        source: Path, content, or an open binary file.
        kind: "image", "video" or "audio", for messages.
        max_bytes: Refuse anything larger.

    Raises:
        UserError: The file is missing, a folder, empty, unreadable or too large.
    """
    if isinstance(source, bytes):
        stream: BinaryIO = io.BytesIO(source)
        name = f"<{kind} of {len(source):,} bytes>"
    elif isinstance(source, str | Path):
        stream, name = _open_path(Path(source), kind), str(source)
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
        if path.is_dir():
            raise UserError(f"expected one {kind} file, got a folder", where=str(path))
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"the {kind} file does not exist", str(path), _similar_name(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open the {kind} file: {reason}", where=str(path)) from None


def _similar_name(path: Path) -> str | None:
    if not path.parent.is_dir():
        return f"there is no folder '{path.parent}'"
    hint = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir() if entry.is_file()])
    return hint.split(" valid:")[0] if hint.startswith("did you mean") else None
