"""A checkpoint folder that appears complete or not at all, its weights written at their places in any order."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from soups.errors import UserError
from soups.sources.config import CONFIG_NAME
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo

WEIGHTS_NAME = "model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
SYNC_SECONDS = 0.1  # a call returns when the disk is done, so a slow one is not asked more often than it can
# In the whole configuration or in that of a part, under the name of transformers before 4.56 too; all else stays.
NAMED_DTYPE = re.compile(rb'("(?:torch_)?dtype"\s*:\s*)"(?:torch\.)?(?:float64|float32|float16|bfloat16)"')
TOKENIZER_FILES = (
    "*tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*processor*.json",
)
SIDE_FILES = (CONFIG_NAME, "generation_config.json", "*.py", *TOKENIZER_FILES)


def check_free(out_dir: Path) -> None:
    """Refuse an output folder that holds something, so that nothing is overwritten, or cannot be replaced."""
    if out_dir.suffix in WEIGHT_SUFFIXES and not out_dir.is_dir():
        what = f"the output is a folder with {WEIGHTS_NAME} in it, and this is the name of a file"
        raise UserError(what, where=str(out_dir), fix=f"give -o {out_dir.with_suffix('')}")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError("the output is already there", where=str(out_dir), fix="remove it or give another -o")
    place = _followed(out_dir)
    if place.is_mount() or place == Path.cwd():
        what = "the output is a new folder, which cannot take the place of a mounted disk or of the current folder"
        raise UserError(what, where=str(out_dir), fix=f"give a folder inside it: -o {out_dir / 'soup'}")


def check_space(out_dir: Path, num_bytes: int) -> None:
    """Refuse a disk that has no room for the output, before anything is read or written."""
    # The output is made beside its place: what counts is the disk of the folder that it will be in.
    free = shutil.disk_usage(next(folder for folder in _followed(out_dir).parents if folder.exists())).free
    if free < num_bytes:
        raise UserError(
            f"{_megabytes(num_bytes)} are needed, {_megabytes(free)} are free",
            where=str(out_dir),
            fix="free some space, or give another -o",
        )


def _followed(out_dir: Path) -> Path:
    """Return the absolute path behind links: a folder can replace an empty one, but not a link to one."""
    return Path(os.path.realpath(out_dir))


@contextmanager
def new_folder(out_dir: Path) -> Iterator[Path]:
    """Yield a folder beside ``out_dir`` to fill; it is renamed at the end, and removed if anything goes wrong.

    What a killed process left behind is removed by the next one that writes to the same place.

    Raises:
        UserError: the output exists, or the disk is full, read-only or failing.
    """
    check_free(out_dir)
    place = _followed(out_dir)
    building = place.parent / f".{place.name}.{uuid4().hex[:8]}.tmp"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place)
        building.mkdir()
        with _locked(building):
            yield building
            _sync_folder(building)
            building.rename(place)
        _sync_folder(place.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = (
            "free some space, or give another -o" if full else "check the disk and the permissions, or give another -o"
        )
        raise UserError(f"the output cannot be written: {error.strerror}", where=str(out_dir), fix=fix) from error
    finally:
        if building.exists():
            shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder if nobody else does; yield whether it is held. A killed process holds none."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held by another process, or not supported by this disk
            yield False
        else:
            yield True
    finally:
        _locks.discard(handle)
        os.close(handle)


_locks: set[int] = set()


def _leave_locks() -> None:
    """Close the locks in a copy of this process: one that outlives it must not seem to be it."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def _remove_abandoned(out_dir: Path) -> None:
    for folder in out_dir.parent.glob(f".{_escaped(out_dir.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), _locked(folder) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(folder, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def copy_side_files(source: Path, folder: Path, dtype: str | None = None, patterns: Sequence[str] = SIDE_FILES) -> None:
    """Copy the configuration, tokenizer and processor files of a checkpoint folder.

    Args:
        source: the checkpoint; a file has no such files.
        folder: where to.
        dtype: of the weights, if it may not be that of the source: a key of ``DTYPES``. Where the configuration names
            a dtype, this one is put in its place, as from_pretrained loads what is named there.
        patterns: of their names: of an adapter only those of the tokenizer, as its configuration is that of its base.
    """
    if source.is_dir():
        for pattern in patterns:
            for path in sorted(p for p in source.glob(pattern) if p.is_file()):
                shutil.copyfile(path, folder / path.name)
    config = folder / CONFIG_NAME
    if dtype is not None and config.is_file():
        config.write_bytes(NAMED_DTYPE.sub(rb'\1"%s"' % DTYPES[dtype][0].encode(), config.read_bytes()))


@dataclass(frozen=True)
class Shard:
    """One file of weights: its name, its header as bytes, and where each tensor starts in it."""

    name: str
    header: bytes
    offsets: Mapping[str, int]
    num_bytes: int


def plan_shards(
    infos: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    *,
    shard_bytes: int | None = None,
    name: str = WEIGHTS_NAME,
) -> list[Shard]:
    """Lay the tensors out in files of at most ``shard_bytes`` each; a larger tensor has a file of its own."""
    # Widest dtypes first, as safetensors does: every tensor then starts at a multiple of its item size.
    groups: list[list[str]] = [[]]
    filled = 0
    for tensor in sorted(infos, key=lambda tensor: (-ITEM_BYTES[infos[tensor].dtype], tensor)):
        num_bytes = infos[tensor].num_bytes
        if shard_bytes is not None and groups[-1] and filled + num_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += num_bytes
    stem = name.removesuffix(".safetensors")
    count = len(groups)
    names = [name] if count == 1 else [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    return [_shard(file, group, infos, metadata) for file, group in zip(names, groups, strict=True)]


def _shard(name: str, group: Sequence[str], infos: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> Shard:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for tensor in group:
        start, end = end, end + infos[tensor].num_bytes
        shape = list(infos[tensor].shape)
        header[tensor] = {"dtype": infos[tensor].dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    raw = len(raw).to_bytes(8, "little") + raw
    offsets = {tensor: len(raw) + header[tensor]["data_offsets"][0] for tensor in group}
    return Shard(name, raw, offsets, len(raw) + end)


class WeightFiles:
    """The weight files of a folder that is being built, at their full size from the start; threads may share it.

    While it is open, a thread sends what was written to the disk: the disk works while the processor does.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._shards = {tensor: shard for shard in shards for tensor in shard.offsets}
        self._files: dict[str, int] = {}
        self._is_complete = threading.Event()
        self._sync_error: OSError | None = None
        self._syncing = threading.Thread(target=self._sync, daemon=True)
        try:
            for shard in shards:
                # Unlike safetensors.save_file (mode 0600), this respects the umask.
                self._files[shard.name] = os.open(folder / shard.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                _reserve(self._files[shard.name], shard.num_bytes)
                _write_all(self._files[shard.name], memoryview(shard.header), 0)
        except BaseException:
            self._close()
            raise
        if len(shards) > 1:
            (folder / f"{WEIGHTS_NAME}.index.json").write_text(self._index(shards), encoding="utf-8")

    def _index(self, shards: Sequence[Shard]) -> str:
        total = sum(shard.num_bytes - len(shard.header) for shard in shards)
        weight_map = {tensor: shard.name for tensor, shard in sorted(self._shards.items())}
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"

    def write_headers(self, shards: Sequence[Shard]) -> None:
        """Replace the headers by others of the same lengths: for metadata that is known only at the end."""
        lengths = {shard.name: len(shard.header) for shard in self._shards.values()}
        for shard in shards:
            assert len(shard.header) == lengths.get(shard.name, len(shard.header))
            _write_all(self._files[shard.name], memoryview(shard.header), 0)

    def write(self, tensor: str, start: int, data: memoryview) -> None:
        """Write bytes of a tensor, from its byte ``start`` on."""
        shard = self._shards[tensor]
        _write_all(self._files[shard.name], data, shard.offsets[tensor] + start)

    def __enter__(self) -> WeightFiles:
        """Return the files."""
        return self

    def start_syncing(self) -> None:
        """Give the disk work while the files are written, rather than at the end: from another thread."""
        self._syncing.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Sync the files to disk, unless something went wrong, and close them."""
        self._is_complete.set()
        if self._syncing.ident is not None:
            self._syncing.join()
        try:
            if kind is None and self._sync_error is not None:
                raise self._sync_error
            for file in self._files.values():
                if kind is None:
                    os.fsync(file)
        finally:
            self._close()

    def _sync(self) -> None:
        try:
            while not self._is_complete.wait(SYNC_SECONDS):
                for file in self._files.values():
                    os.fdatasync(file)
        except OSError as error:  # an error of the disk is told once only, so it is kept for the end
            self._sync_error = error

    def _close(self) -> None:
        for file in self._files.values():
            os.close(file)


def _reserve(file: int, num_bytes: int) -> None:
    """Give a file its blocks now, so that a full disk is noticed before any work."""
    if hasattr(os, "posix_fallocate") and num_bytes:
        try:
            os.posix_fallocate(file, 0, num_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        else:
            return
    os.ftruncate(file, num_bytes)


def _write_all(file: int, data: memoryview, position: int) -> None:
    done = 0
    while done < data.nbytes:  # one call writes at most 2 GB
        done += os.pwrite(file, data[done:], position + done)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
