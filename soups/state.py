"""A checkpoint as ``{name: tensor}``: header inspection, lazy reading, strict comparison, atomic writing.

Reads a folder in the layout of ``transformers`` (``model.safetensors`` or a sharded
``model.safetensors.index.json``) or one ``.safetensors`` file. Headers are parsed here, so that names,
shapes, dtypes and truncation are known before any data is moved and without importing torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from soups.errors import UserError

if TYPE_CHECKING:
    import torch

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*processor*.json",
    "*.py",
)
ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
MAX_LISTED = 10


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor. ``dtype`` uses the names of safetensors: F32, BF16, I64..."""

    dtype: str
    shape: tuple[int, ...]
    path: Path

    @property
    def is_float(self) -> bool:
        """Say whether the tensor can be interpolated; integers and booleans cannot."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def num_elements(self) -> int:
        """Return the number of entries."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Return the size in bytes."""
        return self.num_elements * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: a name for people, its path, and the headers of its tensors."""

    name: str
    path: Path
    infos: Mapping[str, TensorInfo]

    @cached_property
    def weight_paths(self) -> tuple[Path, ...]:
        """Return the weight files, in order of file name."""
        return tuple(sorted({info.path for info in self.infos.values()}))

    @cached_property
    def file_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each weight file, by file name; equal to what ``sha256sum`` prints."""
        return {path.name: _sha256(path) for path in self.weight_paths}

    @cached_property
    def digest(self) -> str:
        """Return one digest for the weights: that of the file, or of the list of digests when sharded."""
        digests = self.file_digests
        if len(digests) == 1:
            return next(iter(digests.values()))
        listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        return hashlib.sha256(listing.encode()).hexdigest()

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], torch.Tensor]]:
        """Open the files and yield a function from a name to its tensor (CPU, stored dtype), read on call."""
        from contextlib import ExitStack

        from safetensors import SafetensorError, safe_open

        with ExitStack() as stack:
            try:
                files = {p: stack.enter_context(safe_open(p, framework="pt")) for p in self.weight_paths}
            except SafetensorError as error:
                raise _corrupt(self.path, str(error)) from error
            yield lambda name: files[self.infos[name].path].get_tensor(name)

    def load(self) -> dict[str, torch.Tensor]:
        """Read every tensor into memory."""
        with self.reader() as read:
            return {name: read(name) for name in self.infos}


def open_checkpoint(path: str | Path, name: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        path: a folder with safetensors weights, or one ``.safetensors`` file.
        name: how people call it; the name of the folder or file by default.

    Raises:
        UserError: nothing there, no weights in it, or a truncated or corrupt file.
    """
    path = Path(path)
    infos: dict[str, TensorInfo] = {}
    for file in _weight_files(path):
        for tensor, info in read_header(file).items():
            if tensor in infos:
                raise UserError(
                    f"tensor {tensor!r} is stored in two shards",
                    where=f"{infos[tensor].path} and {file}",
                    fix="save the checkpoint again",
                )
            infos[tensor] = info
    if not infos:
        raise UserError("checkpoint without tensors", where=str(path), fix="save the checkpoint again")
    name = name or path.resolve().name.removesuffix(".safetensors")
    return Checkpoint(name, path, dict(sorted(infos.items())))


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix == ".safetensors":
            return [path]
        raise UserError(
            f"not a safetensors file: {path.name}",
            where=str(path),
            fix="give a folder with model.safetensors, or a .safetensors file",
        )
    if not path.is_dir():
        raise UserError("no such checkpoint", where=str(path), fix="check the path")
    if (path / WEIGHTS_NAME).is_file():
        return [path / WEIGHTS_NAME]
    if (path / INDEX_NAME).is_file():
        return _shards(path / INDEX_NAME)
    found = ", ".join(sorted(p.name for p in path.iterdir())[:MAX_LISTED]) or "nothing"
    raise UserError(
        f"no {WEIGHTS_NAME} and no {INDEX_NAME} in this folder (it holds: {found})",
        where=str(path),
        fix="give the folder written by save_pretrained(..., safe_serialization=True)",
    )


def _shards(index_path: Path) -> list[Path]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({index_path.parent / Path(name).name for name in weight_map.values()})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(index_path, "no readable weight_map") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:MAX_LISTED])}",
            where=str(index_path.parent),
            fix="copy the missing files",
        )
    return files


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Parse the header of a safetensors file and check that the file holds all the bytes it announces.

    Raises:
        UserError: the file is truncated, corrupt, or holds a dtype that is not known here.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if num_bytes < 8 or length > min(MAX_HEADER_BYTES, num_bytes - 8):
            raise _corrupt(path, f"the header does not fit in {num_bytes} bytes")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        infos = {
            name: TensorInfo(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), path)
            for name, entry in header.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _corrupt(path, "the header is not readable") from error
    if num_bytes != 8 + length + end:
        raise _corrupt(path, f"{8 + length + end} bytes announced, {num_bytes} found")
    unknown = sorted({info.dtype for info in infos.values()} - set(ITEM_BYTES))
    if unknown:
        raise UserError(f"unsupported dtype: {', '.join(unknown)}", where=str(path), fix="cast to F32 or BF16")
    return infos


def _corrupt(path: Path, why: str) -> UserError:
    return UserError(f"truncated or corrupt weights: {why}", where=str(path), fix="copy or download the file again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_compatible(checkpoints: Sequence[Checkpoint]) -> None:
    """Require the same tensor names, shapes and dtypes in every checkpoint.

    Raises:
        UserError: names at most ten tensors that differ from the first checkpoint, with the reason of each.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        problems = _differences(first.infos, other.infos)
        if problems:
            listed = "".join(f"\n    {problem}" for problem in problems[:MAX_LISTED])
            more = f"\n    and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            raise UserError(
                f"{other.name!r} does not match {first.name!r} in {len(problems)} tensors:{listed}{more}",
                where=f"{other.path} against {first.path}",
                fix=_hint(problems),
            )


def _differences(first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo]) -> list[str]:
    problems = [f"missing: {name}" for name in first if name not in other]
    problems += [f"extra: {name}" for name in other if name not in first]
    for name, info in first.items():
        if name not in other or (info.shape, info.dtype) == (other[name].shape, other[name].dtype):
            continue
        kind = "shape" if info.shape != other[name].shape else "dtype"
        problems.append(f"{kind}: {name} is {other[name]}, expected {info}")
    return problems


def _hint(problems: Sequence[str]) -> str:
    if all(problem.startswith("dtype") for problem in problems):
        return "save every checkpoint in the same dtype (float32 keeps small updates)"
    return "merge only models fine-tuned from the same initialisation, with the same architecture"


def write_checkpoint(
    out_dir: Path,
    infos: Mapping[str, TensorInfo],
    tensors: Callable[[str], torch.Tensor],
    *,
    side_files_from: Path,
    texts: Mapping[str, str],
    metadata: Mapping[str, str],
) -> None:
    """Write a checkpoint folder in one step: it appears complete, or not at all.

    Tensors are asked for one at a time and written at once, so that memory holds one tensor.

    Args:
        out_dir: the folder to create; it must not exist, or be empty.
        infos: names, dtypes and shapes to write.
        tensors: returns the tensor of a name, with the dtype and shape announced.
        side_files_from: the checkpoint whose config, tokenizer and processor files are copied.
        texts: further files, by name.
        metadata: strings stored in the header of the weights.
    """
    check_free(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    building = out_dir.parent / f".{out_dir.name}.{uuid4().hex[:8]}.tmp"
    building.mkdir()
    try:
        _write_safetensors(building / WEIGHTS_NAME, infos, tensors, metadata)
        if side_files_from.is_dir():
            for pattern in SIDE_FILES:
                for source in sorted(p for p in side_files_from.glob(pattern) if p.is_file()):
                    shutil.copyfile(source, building / source.name)
        for name, text in texts.items():
            (building / name).write_text(text, encoding="utf-8")
        building.rename(out_dir)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def check_free(out_dir: Path) -> None:
    """Refuse an output folder that holds something, so that nothing is overwritten."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError("the output is already there", where=str(out_dir), fix="remove it or give another -o")


def _write_safetensors(
    path: Path,
    infos: Mapping[str, TensorInfo],
    tensors: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str],
) -> None:
    import torch

    # Widest dtypes first, as safetensors does: every tensor then starts at a multiple of its item size.
    names = sorted(infos, key=lambda name: (-ITEM_BYTES[infos[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        start, end = end, end + infos[name].num_bytes
        header[name] = {
            "dtype": infos[name].dtype,
            "shape": list(infos[name].shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:  # unlike safetensors.save_file (mode 0600), open() respects the umask
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name in names:
            tensor = tensors(name)
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            if tuple(tensor.shape) != infos[name].shape or data.nbytes != infos[name].num_bytes:
                raise AssertionError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not {infos[name]}")
            file.write(data.data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: a temporary file beside it, synced, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file atomically: a temporary file beside it, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with building.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)
