"""Read and write checkpoint files of the original (specification section 9)."""

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unival.atomic import replacing
from unival.convert.arguments import PATHS, complete, native_settings
from unival.convert.layout import (
    COUNTER,
    EMBEDDING,
    TIED,
    check_fit,
    empty_model,
    infer_config,
    rebuild,
    shapes_of,
    table_shape,
)
from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.pickles.torch_file import StoredTensor, read_torch_file, tensors_of
from unival.pickles.values import StateDict, plain


@dataclass(slots=True)
class Original:
    """A checkpoint under the original's names.

    Attributes:
        model: Architecture, without memory for weights.
        tensors: Our model's tensors by name, the embedding once.
        extra: What the file holds beside them and sizes do not give: classification heads, differing copies.
        order: All names of the file, in order.
        record: The rest of the file as plain data: `cfg` or `args`, `optimizer_history`, `extra_state`, `versions`.
        source: Where it came from, for the model card.
        notes: What a person should know.
    """

    model: UnivalForConditionalGeneration
    tensors: dict[str, Tensor]
    extra: dict[str, Tensor]
    order: list[str]
    record: dict[str, Any]
    source: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> UnivalConfig:
        """Return the sizes."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the weights."""
        return self.tensors[EMBEDDING].dtype

    @property
    def settings(self) -> dict[str, Any]:
        """Return the stored command-line arguments, of the task and of the model, in one dictionary."""
        return merge_settings(self.record)


def merge_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the groups of a stored configuration that describe the model; without one, take the old `args`."""
    cfg = record.get("cfg")
    groups = cfg if isinstance(cfg, Mapping) else {"model": record.get("args")}
    found = [groups.get(name) for name in ("task", "model")]
    return {key: value for group in found if isinstance(group, Mapping) for key, value in group.items()}


def read_original(path: Path, is_ema: bool = False) -> Original:
    """Read a file of the original: raw or averaged weights, whatever else it holds.

    Args:
        path: A `.pt` file.
        is_ema: Take the exponential moving average instead of the raw weights.

    Raises:
        UserError: If the file is unreadable, unsafe or not a UnIVAL checkpoint.
    """
    where = str(path)
    file = read_torch_file(path)
    tree = file.tree if isinstance(file.tree, dict) else {}
    state = _find_state(tree, is_ema, where)
    stored = tensors_of(state)
    try:
        record = _read_record(tree, state)
    except ValueError as error:
        raise UserError(f"the configuration in the file is unusable: {error}", where=where) from None
    settings = merge_settings(record)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = infer_config(shapes, settings, where)
    model = empty_model(config, where)
    expected = shapes_of(model.state_dict())
    unexpected = check_fit(shapes, expected, where)
    source = {"file": path.name, "format": f"torch.save, {file.kind}", "weights": "EMA" if is_ema else "raw"}
    original = Original(model, {}, {}, list(stored), record, source)
    _take_tensors(original, stored, unexpected)
    # Batch counters that the file lacks although its norms are not frozen as a whole.
    counters = [name for name in expected if name.endswith(COUNTER) and name not in stored]
    original.tensors.update({name: torch.zeros((), dtype=torch.int64) for name in counters})
    if settings.get("disable_entangle") is False:
        original.notes.append(
            "trained without --disable-entangle: this model computes something else than the original"
        )
    extra = tree.get("extra_state")
    others = {
        "averaged weights, which --ema converts": not is_ema and isinstance(extra, dict) and bool(extra.get("ema")),
        "raw weights, which are converted without --ema": is_ema,
        "the optimizer's state": bool(tree.get("last_optimizer_state")),
    }
    if any(others.values()):
        original.notes.append(f"left out of what the file holds: {', '.join(name for name in others if others[name])}")
    if config.image_encoder is None and config.video_encoder is None and config.audio_encoder is None:
        original.notes.append("no encoder of pictures, clips or sound: a model for text only")
    return original


def _find_state(tree: Mapping[Any, Any], is_ema: bool, where: str) -> Mapping[Any, Any]:
    if is_ema:
        extra = tree.get("extra_state")
        # Both are one average: "ema" in the dtype of the model, which the original evaluates, the other in float32.
        state = extra.get("ema") or extra.get("ema_fp32_params") if isinstance(extra, dict) else None
        if not isinstance(state, dict):
            raise UserError("the file holds no averaged weights", where=where, fix="convert it without --ema")
        return state
    state = tree.get("model", tree)
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        raise UserError("the file holds no weights under `model`", where=where, fix="give an original checkpoint")
    return state


def _read_record(tree: Mapping[Any, Any], state: Mapping[Any, Any]) -> dict[str, Any]:
    cfg, args = plain(tree.get("cfg")), plain(tree.get("args"))  # before fairseq 1.0: one Namespace for everything
    extra = tree.get("extra_state")
    kept = ("epoch", "previous_training_time", "train_iterator", "val_loss", "best")
    history = tree.get("optimizer_history")
    return {
        "cfg": cfg if isinstance(cfg, dict) else None,
        "args": args if isinstance(args, dict) else None,
        "optimizer_history": plain(history) if isinstance(history, list) else None,
        "extra_state": {key: plain(extra[key]) for key in kept if key in extra} if isinstance(extra, dict) else {},
        "versions": plain(state._metadata) if isinstance(state, StateDict) else None,
    }


def _take_tensors(original: Original, stored: Mapping[str, StoredTensor], unexpected: list[str]) -> None:
    """Sort the tensors of the file: the model's, the copies of the embedding, tables, the rest."""
    extra, tensors = original.extra, original.tensors
    copies = [name for name in TIED if name in stored]
    embedding = stored[copies[-1]]
    for name, tensor in stored.items():
        if name not in unexpected and name not in TIED:
            tensors[name] = tensor.load()
    tensors[EMBEDDING] = embedding.load()
    for name in copies[:-1]:
        if not _is_same(stored[name], embedding):
            extra[name] = stored[name].load()
            original.notes.append(f"{name} differs from {copies[-1]}; the original uses the latter, and so do we")
    for name in unexpected:
        tensor = stored[name].load()
        is_table = tuple(tensor.shape) == table_shape(name, original.config)  # of another size, it is not computed
        table = rebuild(name, original.config, original.dtype) if is_table else None
        if table is not None and table.dtype == tensor.dtype and torch.equal(table, tensor):
            continue
        extra[name] = tensor
        if name.endswith("_bucket"):
            original.notes.append(f"{name} is not the table of its sizes; the converted model computes with the latter")


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Compare bytes: 0.0 and -0.0 are equal numbers, and a NaN is none."""
    if one.storage is other.storage and (one.offset, one.stride) == (other.offset, other.stride):
        return True
    bits = [stored.load().contiguous().view(torch.uint8) for stored in (one, other)]
    return one.dtype == other.dtype and torch.equal(*bits)


def write_original(original: Original, path: Path) -> None:
    """Write a file that the original loads: complete or not at all.

    Raises:
        UserError: If the file is there already.
    """
    if path.exists():
        raise UserError("the file is there already", where=str(path), fix="remove it or give another name")
    tied = _own_storage(original.tensors[EMBEDDING])
    state = OrderedDict(
        (name, tied if name in TIED and name not in original.extra else _own_storage(_tensor(original, name)))
        for name in original.order
    )
    if original.record.get("versions") is not None:
        state._metadata = original.record["versions"]  # pyright: ignore[reportAttributeAccessIssue]
    record = original.record
    content = {
        **_arguments(original),
        "model": state,
        "criterion": {},
        "optimizer_history": record.get("optimizer_history") or [_NO_HISTORY],
        "task_state": {},
        "extra_state": _EXTRA_STATE | (record.get("extra_state") or {}),
    }
    with replacing(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of the end of the archive, which torch writes behind a disk that is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _arguments(original: Original) -> dict[str, Any]:
    """Return `args` and `cfg` as the file had them; a file that had neither gets what the loader needs."""
    cfg, args = original.record.get("cfg"), original.record.get("args")
    if not cfg and args:
        kept = args | {name: None for name in PATHS if name in args}
        return {"args": argparse.Namespace(**kept), "cfg": None}
    return {"args": None, "cfg": complete(cfg or native_settings(original.config, {}))}


_NO_HISTORY: dict[str, Any] = {
    "criterion_name": "AdjustLabelSmoothedCrossEntropyCriterion",
    "optimizer_name": "FairseqAdam",
    "lr_scheduler_state": {"best": None},
    "num_updates": 0,
}
_EXTRA_STATE: dict[str, Any] = {
    "metrics": {},
    "previous_training_time": 0,
    "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": False, "len": 1},
    "val_loss": None,
    "best": None,
}


def _tensor(original: Original, name: str) -> Tensor:
    if name in original.extra:
        return original.extra[name]
    if name in original.tensors:
        return original.tensors[name]
    table = rebuild(name, original.config, original.dtype)
    assert table is not None, name
    return table


def _own_storage(tensor: Tensor) -> Tensor:
    """Return `tensor` on a storage of just its elements, because whole storages are saved.

    A contiguous tensor is not copied: its part of the storage shares the memory.
    """
    if not tensor.is_contiguous():
        return tensor.contiguous()
    start = tensor.storage_offset() * tensor.itemsize
    part = tensor.untyped_storage()[start : start + tensor.nbytes]
    return torch.empty(0, dtype=tensor.dtype).set_(part).view(tensor.shape)
