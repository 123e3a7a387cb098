"""Damaged and hostile files of `torch.save`: our error or values, nothing else, and little memory (S1 to S5)."""

import argparse
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from unival.errors import UserError
from unival.log import peak_resident
from unival.pickles.torch_file import StoredTensor, read_torch_file
from unival.pickles.values import Instance

# Operations of a pickle that build, call, name or remember something.
OPERATIONS = [bytes([code]) for code in b"cR\x81\x93bu}](t\x94\x8chqQP.0125iojd\x82\x85\x86\x87e\x90\x91\x88\x89N"]
CONTAINERS = ("zip", "zip with right checksums", "legacy")


def write_good(path: Path, is_zip: bool) -> bytes:
    """Write a small file with everything that checkpoints have."""
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(a=base, b=base[1], c=torch.arange(5), d=torch.tensor(True), e=torch.ones(3).half())
    args = argparse.Namespace(arch="unival_base", task="caption", lr=[1e-5], names={"x": (1, 2.5, None)})
    tree = {"model": state, "cfg": {"model": args}, "extra_state": {"epoch": 3, "seen": {1, 2}}, "args": None}
    torch.save(tree, path, _use_new_zipfile_serialization=is_zip)
    return path.read_bytes()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Change bytes in one of the ways in which files go wrong or are made to."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        kind, where = draw.randrange(6), draw.randrange(max(len(data), 1))
        if kind == 0:
            data = data[: draw.randrange(len(data) + 1)]
        elif kind == 1:
            data = data[:where] + bytes([draw.randrange(256)]) + data[where + 1 :]
        elif kind == 2:
            data = data[:where] + draw.randbytes(draw.randrange(1, 9)) + data[where:]
        elif kind == 3:
            data = data[:where] + data[where + draw.randrange(1, 9) :]
        elif kind == 4:
            data = data[:where] + draw.choice(OPERATIONS) + data[where + draw.randrange(2) :]
        else:  # a piece of the file once more
            begin = draw.randrange(max(len(data), 1))
            data = data[:where] + data[begin : begin + draw.randrange(1, 40)] + data[where:]
    return data


def write_mutated(path: Path, good: bytes, entries: dict[str, bytes], container: str, draw: random.Random) -> None:
    if container != "zip with right checksums":
        path.write_bytes(mutated(good, draw))
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, mutated(data, draw) if name.endswith("data.pkl") else data)


def read_all(path: Path) -> int:
    """Read a file and all tensors in it; return their number."""
    rest, seen, found = [read_torch_file(path).tree], set(), 0
    while rest:
        node: Any = rest.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, StoredTensor):
            node.load().sum()
            found += 1
        elif isinstance(node, dict):
            rest += node.values()
        elif isinstance(node, list | tuple):
            rest += node
        elif isinstance(node, Instance):
            rest += [node.state, node.items, node.args]
    return found


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("num", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_refused_or_read(tmp_path: Path, container: str, num: int) -> None:
    draw, path, entries = random.Random(0), tmp_path / "x.pt", {}
    good = write_good(path, is_zip=container != "legacy")
    assert read_all(path) == 5
    if container != "legacy":
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    clear_refs = Path("/proc/self/clear_refs")
    if clear_refs.exists():  # Linux: the maximum begins anew, so that the limit below is not that of earlier tests
        clear_refs.write_text("5", encoding="ascii")
    before, refused = peak_resident(), 0
    for _ in range(num):
        write_mutated(path, good, entries, container, draw)
        try:
            read_all(path)
        except UserError:
            refused += 1
    assert refused > num // 2
    assert peak_resident() - before < 300 * 1024**2


@pytest.mark.parametrize("name", [rb"o\s", rb"\x6fs", rb"\Al"])
def test_a_name_with_a_backslash_is_refused_without_a_warning(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02c" + name + b"\nsystem\n.")
    with pytest.raises(UserError, match="refused"):
        read_torch_file(path)
