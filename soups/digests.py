"""The SHA-256 of weight files, equal to what ``sha256sum`` prints, computed once per file.

A digest takes longer than a merge. It is remembered, in a small file per weight file under the cache folder
(``$XDG_CACHE_HOME/soups``), with what changes whenever a file does: size, time of the last change of the content, and
of the inode, which programs cannot set. A file changed less than two seconds ago may change again without a sign.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from soups.errors import UserError

BUFFER_BYTES = 1 << 16  # larger ones leave the cache of the processor
SETTLED_NS = 2_000_000_000


def sha256(path: Path) -> str:
    """Return the digest of a file, remembered or computed.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            state = _state(file.fileno())
            known = _recall(state)
            if known is not None:
                return known
            digest, buffer = hashlib.sha256(), bytearray(BUFFER_BYTES)
            view = memoryview(buffer)
            while count := file.readinto(buffer):
                digest.update(view[:count])
            if state == _state(file.fileno()):
                _remember(state, digest.hexdigest())
            return digest.hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=str(path), fix="check the file and its disk"
        ) from error


def _state(file: int) -> dict[str, int]:
    found = os.fstat(file)
    return {name: getattr(found, f"st_{name}") for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns")}


def _place(state: dict[str, int]) -> Path:
    """Return where the digest of a file is kept: the next file with this inode takes its place."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "soups" / "digests" / f"{state['dev']:x}-{state['ino']:x}.json"


def _recall(state: dict[str, int]) -> str | None:
    with suppress(OSError, ValueError, RuntimeError):  # no home, nothing there, or damaged
        kept = json.loads(_place(state).read_text(encoding="utf-8"))
        digest = kept.get("sha256") if isinstance(kept, dict) else None
        if isinstance(digest, str) and len(digest) == 64 and kept == state | {"sha256": digest}:
            return digest
    return None


def _remember(state: dict[str, int], digest: str) -> None:
    if time.time_ns() - max(state["mtime_ns"], state["ctime_ns"]) < SETTLED_NS:
        return
    with suppress(OSError, RuntimeError):  # a convenience: a home without room or permission changes nothing
        place = _place(state)
        place.parent.mkdir(parents=True, exist_ok=True)
        building = place.with_name(f"{place.name}.{uuid4().hex[:8]}.tmp")
        building.write_text(json.dumps(state | {"sha256": digest}) + "\n", encoding="utf-8")
        building.replace(place)
