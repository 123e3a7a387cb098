"""Checkpoints in the formats that people have, read from their headers: names, shapes, dtypes, places of the bytes.

Nothing here imports torch or reads a weight; the data is read by `soups.state`, the same way for every format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from soups.errors import UserError
from soups.sources.info import TensorInfo, corrupt
from soups.sources.safetensors_file import read_safetensors
from soups.sources.torch_file import read_torch_file

# What a folder in the layout of transformers may hold, the safest first.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".pyt")
MAX_LISTED = 10


def read_infos(path: Path, *, average: bool = False) -> dict[str, TensorInfo]:
    """Return the headers of all tensors of a checkpoint, by name.

    Args:
        path: a folder in the layout of transformers, a ``.safetensors`` file, or a file of ``torch.save``.
        average: take the moving average that a training stored beside the weights.

    Raises:
        UserError: nothing there, no weights in it, or a truncated, corrupt or unsafe file.
    """
    infos: dict[str, TensorInfo] = {}
    for file in weight_files(path):
        for name, info in _read_file(file, average=average).items():
            if name in infos:
                raise UserError(
                    f"tensor {name!r} is stored in two shards",
                    where=f"{infos[name].path} and {file}",
                    fix="save the checkpoint again",
                )
            infos[name] = info
    _check_index(path, infos)
    if not infos:
        raise UserError("checkpoint without tensors", where=str(path), fix="save the checkpoint again")
    return infos


def _check_index(path: Path, infos: Mapping[str, TensorInfo]) -> None:
    """Require the shards of a folder to hold every tensor that their index names."""
    index = next((path / name for name in FOLDER_FILES if (path / name).is_file()), path)
    if index.suffix != ".json":
        return
    absent = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) - set(infos))
    if absent:
        listed = ", ".join(absent[:MAX_LISTED])
        what = f"the index names {len(absent)} tensors that no shard holds: {listed}"
        raise UserError(what, where=str(index), fix="copy the shards and the index of one save")


def _read_file(path: Path, *, average: bool) -> dict[str, TensorInfo]:
    try:
        return _read_header(path, average=average)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path), fix="check the permissions") from error


def _read_header(path: Path, *, average: bool) -> dict[str, TensorInfo]:
    if path.suffix != ".safetensors":
        return read_torch_file(path, average=average)
    if average:
        raise UserError("a safetensors file holds no moving average", where=str(path), fix="leave --ema out")
    return read_safetensors(path)


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights of a checkpoint."""
    if path.is_file():
        if path.suffix in (".safetensors", *TORCH_SUFFIXES):
            return [path]
        raise UserError(
            f"not a file of weights: {path.name}",
            where=str(path),
            fix=f"give a folder, a .safetensors file, or one of {', '.join(TORCH_SUFFIXES)}",
        )
    if not path.is_dir():
        raise UserError("no such checkpoint", where=str(path), fix="check the path")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return _shards(path / name) if name.endswith(".json") else [path / name]
    found = ", ".join(sorted(p.name for p in path.iterdir())[:MAX_LISTED]) or "nothing"
    inside = [p.name for p in sorted(path.iterdir()) if (p / "adapter_config.json").is_file()]
    one = f"one of its adapters: {', '.join(str(path / name) for name in inside[:MAX_LISTED])}" if inside else ""
    raise UserError(
        f"no {' and no '.join(FOLDER_FILES[::2])} in this folder (it holds: {found})",
        where=str(path),
        fix=f"give {one or 'the folder written by save_pretrained, or one file of weights in it'}",
    )


def _shards(index_path: Path) -> list[Path]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        # Only the name: an index is data, and must not point outside its folder.
        files = sorted({index_path.parent / Path(name).name for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise corrupt(index_path, "no readable weight_map") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} shards are missing: {', '.join(missing[:MAX_LISTED])}",
            where=str(index_path.parent),
            fix="copy the missing files",
        )
    return files
