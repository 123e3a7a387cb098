"""Files that appear whole or not at all: written under a temporary name beside the target, then renamed."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that takes the name `path` when the block ends without an error.

    Text is UTF-8 with line feeds on every system. The folder is created. After an error nothing is left and an older
    file of that name is untouched. (No `tempfile`: its files can be read by their owner only.)

    Args:
        path: The file to make.
        mode: "w" or "wb".
    """
    target = Path(path)
    if target.is_dir():  # before hours are spent on what cannot take its place
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    is_text = "b" not in mode
    try:
        with temporary.open(mode, encoding="utf-8" if is_text else None, newline="\n" if is_text else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def append(path: str | Path, text: str) -> None:
    """Add text to the end of a file; after an error, as on a full disk, the file is as it was."""
    rest = memoryview(text.encode())
    with Path(path).open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write a value as one JSON document with a final line end; letters stay letters."""
    with replacing(path) as file:
        json.dump(value, file, ensure_ascii=False, allow_nan=False, indent=indent)
        file.write("\n")
