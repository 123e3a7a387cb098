"""The header of a safetensors file: names, dtypes, shapes and offsets, all checked before any data is read.

Format: 8 bytes with the length of the header, a JSON header, then the tensors one after the other, without
overlap or hole (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from soups.errors import UserError
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo, corrupt, wrapped

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
MAX_AXES = 64  # that of numpy and torch; without a limit, the product of a hostile shape takes hours


def read_safetensors(path: Path) -> dict[str, TensorInfo]:
    """Parse the header and check that the file holds exactly the bytes that it announces.

    Raises:
        UserError: the file is truncated, corrupt, or holds a dtype that is not known here.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or length > min(MAX_HEADER_BYTES, num_bytes - 8):
            raise corrupt(path, f"the header does not fit in {num_bytes} bytes")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw, object_pairs_hook=_without_repeats)
        header.pop("__metadata__", None)
        entries = {name: _entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise corrupt(path, f"the header is not readable ({error})") from error
    unknown = sorted({dtype for dtype, *_ in entries.values()} - set(DTYPES))
    if unknown:
        raise UserError(f"unsupported dtype: {', '.join(unknown)}", where=str(path), fix="cast to F32 or BF16")
    _check_layout(path, entries, num_bytes - 8 - length)
    start, cut = 8 + length, wrapped(entries)
    return {
        name[cut:]: TensorInfo(dtype, shape, path, start + begin) for name, (dtype, shape, begin, _) in entries.items()
    }


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a file that was read before says of itself; empty where it is another format, or says nothing."""
    if path.suffix != ".safetensors":
        return {}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__")
    return found if isinstance(found, dict) else {}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is repeated")
    return found


def _entry(entry: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if len(shape) > MAX_AXES or any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
        raise ValueError("a size or an offset is not possible")
    return str(entry["dtype"]), shape, begin, end


def _check_layout(path: Path, entries: dict[str, tuple[str, tuple[int, ...], int, int]], num_bytes: int) -> None:
    position = 0
    for name, (dtype, shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise corrupt(path, f"{name!r} starts at {begin}, expected {position}")
        if end - begin != prod(shape) * ITEM_BYTES[dtype]:
            raise corrupt(path, f"{name!r} has {end - begin} bytes, which are not {dtype} {list(shape)}")
        position = end
    if position != num_bytes:
        raise corrupt(path, f"{position} bytes of tensors announced, {num_bytes} found")
