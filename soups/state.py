"""A checkpoint as ``{name: tensor}``: lazy reading, digests, strict comparison; and files replaced atomically.

`soups.sources` reads the headers of every format, so that names, shapes, dtypes and truncation are known before
any data is moved and without importing torch. Here is what all formats share: the bytes are read at their offsets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from soups.digests import sha256
from soups.errors import UserError
from soups.sources import TORCH_SUFFIXES, read_infos
from soups.sources.config import tied_embedding
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo, corrupt
from soups.sources.lora import Update, is_adapter, read_adapter
from soups.ties import is_copy, maybe_tied

if TYPE_CHECKING:
    import torch

MAX_LISTED = 10
READ_THREADS = 4


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One checkpoint on disk: a name for people, its path, and the headers of its tensors.

    Attributes:
        name: how people call it.
        path: the folder or file that was given.
        infos: the header of every tensor, by name.
        average: whether these are the moving average that is stored beside the weights.
        base: for an adapter, what it is put on.
        updates: for an adapter, how the tensors that it changes are computed.
        factors: for an adapter, the headers of its own tensors.
        added: for an adapter, the tensors that its base does not have, such as a new head.
        known_copies: what `soups.ties.is_copy` found by reading, by the two names.
    """

    name: str
    path: Path
    infos: Mapping[str, TensorInfo]
    average: bool = False
    base: Checkpoint | None = None
    updates: Mapping[str, Update] = field(default_factory=dict)
    factors: Mapping[str, TensorInfo] = field(default_factory=dict)
    added: Sequence[str] = ()
    known_copies: dict[tuple[str, str], bool] = field(default_factory=dict, repr=False)

    @cached_property
    def weight_paths(self) -> tuple[Path, ...]:
        """Return the weight files, in order of file name."""
        return tuple(sorted({info.path for infos in (self.infos, self.factors) for info in infos.values()}))

    @cached_property
    def file_digests(self) -> dict[str, str]:
        """Return the SHA-256 of each weight file, by file name; equal to what ``sha256sum`` prints."""
        return {path.name: sha256(path) for path in self.weight_paths}

    @cached_property
    def digest(self) -> str:
        """Return one digest for the weights: that of the file, or of the list of digests when there are several.

        What an adapter's settings make of its factors, such as the scale, is part of the list.
        """
        digests = self.file_digests
        is_average = self.average or (self.base is not None and self.base.average)
        if len(digests) == 1 and not is_average and not self.updates:
            return next(iter(digests.values()))
        listing = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        listing += "".join(f"{self.updates[name]}  {name}\n" for name in sorted(self.updates))
        return hashlib.sha256((listing + "average" * is_average).encode()).hexdigest()

    def described(self) -> dict[str, Any]:
        """Return as plain data what `reopen` needs."""
        described: dict[str, Any] = {"path": str(self.path), "sha256": self.digest}
        described |= {"average": True} if self.average else {}
        return described | ({"base": self.base.described()} if self.base else {})

    @property
    def model_path(self) -> Path:
        """Return the path whose configuration fits the tensors: for an adapter, that of its base."""
        return self.base.path if self.base else self.path

    def is_contiguous(self, name: str) -> bool:
        """Say whether the entries of a tensor lie in a file one after the other, so that parts can be read."""
        return self.infos[name].strides is None and name not in self.updates

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the files and yield a function from a name to its tensor (CPU, stored dtype), read on call."""
        reader = Reader(self)
        try:
            yield reader
        finally:
            reader.close()

    def load(self) -> dict[str, torch.Tensor]:
        """Read every tensor into memory."""
        with self.reader() as read:
            return by_name(read, self.infos)


def by_name(read: Callable[[str], torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return what `read` gives for each name, in some threads: one alone waits for fresh memory half of its time."""
    listed = list(names)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return dict(zip(listed, pool.map(read, listed), strict=True))


class Reader:
    """Reads the tensors of one checkpoint on call; threads may share it.

    Bytes are copied rather than mapped: a file that is cut while it is read is then an error and no bus error,
    network disks are read in large requests, and nothing stays in memory after use.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = {path: os.open(path, os.O_RDONLY) for path in checkpoint.weight_paths}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            os.close(file)

    def __call__(self, name: str) -> torch.Tensor:
        """Return a whole tensor, in its stored dtype; what an adapter changed is at least float32."""
        update = self._checkpoint.updates.get(name)
        stored = self._whole(self._checkpoint.infos[name])
        if update is None:
            return stored
        return update.apply(stored, lambda factor: self._whole(self._checkpoint.factors[factor]))

    def factor(self, name: str) -> torch.Tensor:
        """Return one of the adapter's own tensors."""
        return self._whole(self._checkpoint.factors[name])

    def piece(self, name: str, start: int, stop: int, memory: torch.Tensor | None = None) -> torch.Tensor:
        """Return the entries ``start`` to ``stop`` of a flat contiguous tensor, without reading the others.

        Args:
            name: the tensor.
            start: the first entry.
            stop: the entry after the last.
            memory: bytes to read into, at least as many as the entries have; new memory by default.
        """
        return self._flat(self._checkpoint.infos[name], start, stop, memory)

    def _whole(self, info: TensorInfo) -> torch.Tensor:
        if info.strides is None:
            return self._flat(info, 0, info.num_elements).reshape(info.shape)
        num_items = info.extent // DTYPES[info.dtype][1]
        return self._flat(info, 0, num_items).as_strided(info.shape, info.strides).contiguous()

    def fill(self, name: str, start: int, memory: memoryview) -> None:
        """Read the stored bytes of a flat contiguous tensor, from its entry ``start`` on, as many as fit."""
        info = self._checkpoint.infos[name]
        self._read(info, start * ITEM_BYTES[info.dtype], memory)

    def _flat(self, info: TensorInfo, start: int, stop: int, memory: torch.Tensor | None = None) -> torch.Tensor:
        import torch

        dtype, size = DTYPES[info.dtype]
        if memory is None:
            memory = torch.empty((stop - start) * size, dtype=torch.uint8)
        memory = memory[: (stop - start) * size]
        self._read(info, start * size, memory.numpy().data)
        return memory.view(getattr(torch, dtype))

    def _read(self, info: TensorInfo, first: int, memory: memoryview) -> None:
        done = 0
        while done < memory.nbytes:  # one call reads at most 2 GB
            count = os.preadv(self._files[info.path], [memory[done:]], info.offset + first + done)
            if count == 0:
                raise corrupt(info.path, "it became shorter while it was read")
            done += count


def open_checkpoint(
    path: str | Path,
    name: str | None = None,
    *,
    average: bool = False,
    adapter_base: Checkpoint | None = None,
) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        path: a folder of transformers or of PEFT, a ``.safetensors`` file, or a file of ``torch.save``.
        name: how people call it; the name of the folder or file by default.
        average: take the moving average that a training stored beside the weights.
        adapter_base: what an adapter is applied to; the folder that its configuration names by default.

    Raises:
        UserError: nothing there, no weights in it, or a truncated, corrupt or unsafe file.
    """
    path = Path(path)
    name = name or _default_name(path)
    if is_adapter(path):
        if average:
            raise UserError("an adapter holds no moving average", where=str(path), fix="leave --ema out")
        return _open_adapter(path, name, adapter_base)
    infos = read_infos(path, average=average)
    return Checkpoint(name, path, dict(sorted(infos.items())), average)


def _open_adapter(path: Path, name: str, base: Checkpoint | None) -> Checkpoint:
    adapter = read_adapter(path)
    base = base or open_checkpoint(adapter.base_path)
    if base.updates:
        raise UserError("the base of an adapter is an adapter too", where=str(base.path), fix="merge that one first")
    infos, updates, added = adapter.over(base.infos)
    embedding = tied_embedding(base.path, base.infos) or ""
    if embedding in adapter.changed and not added and not adapter.config.get("ensure_weight_tying"):
        raise UserError(
            f"{embedding!r} is the output layer of the base too, and was trained as the embedding alone",
            where=str(path),
            fix="give the base untied, with an output layer that is a copy of its embedding: --base DIR",
        )
    checkpoint = Checkpoint(name, path, infos, base=base, updates=updates, factors=adapter.factors, added=added)
    for head in added:  # PEFT stores a tied output layer twice; at one place in the file, it is merged as one
        infos[head] = next(
            (info for other, info in infos.items() if other != head and is_copy(checkpoint, head, other)), infos[head]
        )
    return checkpoint


def reopen(described: Mapping[str, Any], name: str | None = None) -> Checkpoint:
    """Open a checkpoint as `Checkpoint.described` recorded it.

    Raises:
        UserError: it is not there any more, or has changed.
    """
    base = described.get("base")
    checkpoint = open_checkpoint(
        described["path"],
        name,
        average=described.get("average", False),
        adapter_base=reopen(base) if base else None,
    )
    if checkpoint.digest != described["sha256"]:
        raise UserError("this checkpoint has changed", where=described["path"], fix="start again, with another -o")
    return checkpoint


def _default_name(path: Path) -> str:
    suffixes = (".safetensors", *TORCH_SUFFIXES)
    return path.resolve().stem if path.suffix in suffixes and path.is_file() else path.resolve().name


def files_without_digest(checkpoints: Sequence[Checkpoint]) -> list[Path]:
    """Return the weight files of some checkpoints whose digests were not computed yet."""
    # Not through the properties: functools.cached_property of Python 3.11 lets one thread compute at a time.
    return sorted({path for c in checkpoints if "file_digests" not in c.__dict__ for path in c.weight_paths})


def record_digests(checkpoints: Sequence[Checkpoint], found: Mapping[Path, str]) -> None:
    """Tell the checkpoints the digests of their files."""
    for checkpoint in checkpoints:
        if all(path in found for path in checkpoint.weight_paths):
            checkpoint.__dict__["file_digests"] = {path.name: found[path] for path in checkpoint.weight_paths}


def read_digests(checkpoints: Sequence[Checkpoint]) -> None:
    """Compute the digests of all files of some checkpoints at the same time, unless they are known."""
    paths = files_without_digest(checkpoints)
    with ThreadPoolExecutor() as pool:
        record_digests(checkpoints, dict(zip(paths, pool.map(sha256, paths), strict=True)))


def check_compatible(
    checkpoints: Sequence[Checkpoint], *, any_dtype: bool = False, ignored: Collection[str] = ()
) -> None:
    """Require the same tensor names, shapes and dtypes in every checkpoint.

    Args:
        checkpoints: to compare with the first of them.
        any_dtype: whether floating-point tensors may have different dtypes.
        ignored: names that some may lack, see `soups.ties.copied_names`.

    Raises:
        UserError: names at most ten tensors that differ from the first checkpoint, with the reason of each.
    """
    first = checkpoints[0]
    for other in checkpoints[1:]:
        left, right = ({n: info for n, info in c.infos.items() if n not in ignored} for c in (first, other))
        problems = _differences(left, right, any_dtype=any_dtype)
        if problems:
            listed = "".join(f"\n    {problem}" for problem in problems[:MAX_LISTED])
            more = f"\n    and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
            raise UserError(
                f"{other.name!r} does not match {first.name!r} in {len(problems)} tensors:{listed}{more}",
                where=f"{other.path} against {first.path}",
                fix=_hint(problems, (first, other)),
            )


def _differences(
    first: Mapping[str, TensorInfo], other: Mapping[str, TensorInfo], *, any_dtype: bool = False
) -> list[str]:
    problems = [f"missing: {name}" for name in first if name not in other]
    problems += [f"extra: {name}" for name in other if name not in first]
    for name, info in first.items():
        if name not in other:
            continue
        if info.shape != other[name].shape:
            problems.append(f"shape: {name} is {other[name]}, expected {info}")
        elif info.dtype != other[name].dtype and not (any_dtype and info.is_float and other[name].is_float):
            problems.append(f"dtype: {name} is {other[name]}, expected {info}")
    return problems


def _hint(problems: Sequence[str], pair: Sequence[Checkpoint]) -> str:
    if all(problem.startswith("dtype") for problem in problems):
        return "save every checkpoint in the same dtype (float32 keeps small updates), or give --dtype"
    fix = "merge only models fine-tuned from the same initialisation, with the same architecture"
    if not all(problem.startswith(("missing", "extra")) for problem in problems):
        return fix
    if found := maybe_tied(pair):
        name, other, model = found  # owners would take this output layer from one model, and mix the embeddings
        return f"{fix}; if {name!r} is tied to {other!r} in {model!r}, save that model with both"
    return f"{fix}; or write a recipe with policies.keys: owners or common"


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: a temporary file beside it, synced, then renamed."""
    write_bytes(path, text.encode())


def check_file(path: Path | None) -> None:
    """Refuse a name under which no file can be written, before the work whose result it is to hold.

    Raises:
        UserError: it is a folder, or lies below a file.
    """
    if path is None:
        return
    below = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not below.is_dir():
        what = "this is a folder" if path.is_dir() else f"{below.name!r} is a file, not a folder"
        raise UserError(what, where=str(path), fix="name a file to write")


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
