"""Damaged and hostile safetensors files: our error or a load, nothing else, and no memory beyond the file's (S5)."""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unival.errors import UserError
from unival.weights import read_weights


def with_header(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with a header as given, whose length may be a lie."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Change a file in one of the ways in which files go wrong or are made to."""
    kind, where = draw.randrange(5), draw.randrange(len(data))
    if kind == 0:
        return data[:where]
    if kind == 1:
        return data[:where] + bytes([data[where] ^ 1 << draw.randrange(8)]) + data[where + 1 :]
    if kind == 2:
        return data[:where] + draw.randbytes(draw.randrange(1, 9)) + data[where:]
    if kind == 3:
        return data[:where] + data[where + draw.randrange(1, 9) :]
    header = draw.randrange(8 + int.from_bytes(data[:8], "little"))  # most damage is done there
    return data[:header] + draw.choice([b"0", b"9", b"-", b"}", b"[", b'"', b"\x00", b"\xff"]) + data[header + 1 :]


def assert_refused_or_loaded(path: Path) -> None:
    try:
        tensors = read_weights(path)
    except UserError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@pytest.mark.parametrize("num", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_refused_or_loads(tmp_path: Path, num: int) -> None:
    draw = random.Random(0)
    tensors = {f"layer.{i}.weight": torch.full((i + 1, 3), float(i)) for i in range(6)}
    save_file(tensors | {"steps": torch.tensor(3)}, tmp_path / "good.safetensors", {"format": "pt"})
    data = (tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    for _ in range(num):
        path.write_bytes(mutated(data, draw))
        assert_refused_or_loaded(path)


BOMBS: dict[str, Any] = {
    "a length of 2^63": lambda path: with_header(path, b"{}", length=2**63),
    "a length beyond the limit": lambda path: with_header(path, b"{}", length=100_000_001),
    "sizes of 2^63": lambda path: with_header(path, json.dumps({"a": entry(0, 2**63, [2**61])}).encode(), b"\0" * 64),
    "a shape that overflows": lambda path: with_header(
        path, json.dumps({"a": entry(0, 4, [2**32, 2**32, 2**32])}).encode(), b"\0" * 4
    ),
    "overlapping tensors": lambda path: with_header(
        path, json.dumps({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}).encode(), b"\0" * 4
    ),
    "a hole": lambda path: with_header(path, json.dumps({"a": entry(4, 8, [1])}).encode(), b"\0" * 8),
    "deep nesting": lambda path: with_header(path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an unknown type": lambda path: with_header(path, json.dumps({"a": entry(0, 4, [1], "X9")}).encode(), b"\0" * 4),
    "a header of 99 MB": lambda path: with_header(path, b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}'),
    "100,000 entries": lambda path: with_header(
        path, json.dumps({f"t{i}": entry(0, 0, [0]) for i in range(100_000)}).encode()
    ),
}
LOADS = {"a header of 99 MB", "100,000 entries"}  # only large
MEASURE = """
import sys
from pathlib import Path
from unival.errors import UserError
from unival.log import peak_resident
from unival.weights import read_weights
before = peak_resident()
try:
    read_weights(Path(sys.argv[1]))
except UserError:
    pass
print(peak_resident() - before)
"""


@pytest.mark.parametrize("name", sorted(set(BOMBS) - LOADS))
def test_a_header_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    path = BOMBS[name](tmp_path / "bomb.safetensors")
    with pytest.raises(UserError, match="truncated or corrupt weights"):
        read_weights(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_header_costs_less_than_300_megabytes(tmp_path: Path, name: str) -> None:
    path = BOMBS[name](tmp_path / "bomb.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 2**20
