"""Read and write checkpoint files of the original (specification section 9)."""

import argparse
import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unival.convert.layout import COUNTER, EMBEDDING, TIED, check_fit, empty_model, infer_config, rebuild, shapes_of
from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.modeling import UnivalForConditionalGeneration
from unival.pickles.torch_file import StoredTensor, read_torch_file, tensors_of
from unival.pickles.values import StateDict, plain

# Groups that the original's configuration has beside the ones that we fill; it looks them up by name.
GROUPS = (
    *("common", "common_eval", "distributed_training", "dataset", "optimization", "checkpoint", "bmuf", "generation"),
    *("eval_lm", "interactive", "model", "task", "criterion", "optimizer", "lr_scheduler", "scoring", "ema"),
)
# Files that the original opens when it builds the model; the checkpoint has their weights.
PATHS = ("resnet_model_path", "video_model_path", "audio_model_path")


@dataclass(slots=True)
class Original:
    """A checkpoint under the original's names.

    Attributes:
        model: Architecture, without memory for weights.
        tensors: Our model's tensors by name, the embedding once.
        extra: What the file holds beside them and sizes do not give: classification heads, differing copies.
        order: All names of the file, in order.
        record: The rest of the file as plain data: `cfg`, `optimizer_history`, `extra_state`, `versions`.
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
        return merge_settings(self.record.get("cfg"))


def merge_settings(cfg: Any) -> dict[str, Any]:
    """Flatten the groups of a configuration that describe the model; anything else gives an empty dictionary."""
    groups = cfg if isinstance(cfg, Mapping) else {}
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
    settings = merge_settings(record["cfg"])
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = infer_config(shapes, settings, where)
    model = empty_model(config)
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
    if config.image_encoder is None and config.video_encoder is None and config.audio_encoder is None:
        original.notes.append("no encoder of pictures, clips or sound: a model for text only")
    return original


def _find_state(tree: Mapping[Any, Any], is_ema: bool, where: str) -> Mapping[Any, Any]:
    if is_ema:
        extra = tree.get("extra_state")
        state = extra.get("ema") if isinstance(extra, dict) else None
        if not isinstance(state, dict):
            raise UserError("the file holds no averaged weights", where=where, fix="convert it without --ema")
        return state
    state = tree.get("model", tree)
    if not isinstance(state, dict) or not any(isinstance(value, StoredTensor) for value in state.values()):
        raise UserError("the file holds no weights under `model`", where=where, fix="give an original checkpoint")
    return state


def _read_record(tree: Mapping[Any, Any], state: Mapping[Any, Any]) -> dict[str, Any]:
    cfg = plain(tree.get("cfg"))
    if not isinstance(cfg, dict):  # files before fairseq 1.0 have one Namespace for everything
        args = plain(tree.get("args"))
        cfg = {"model": args} if isinstance(args, dict) else None
    extra = tree.get("extra_state")
    kept = ("epoch", "previous_training_time", "train_iterator", "val_loss", "best")
    history = tree.get("optimizer_history")
    return {
        "cfg": cfg,
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
        table = rebuild(name, original.config, original.dtype)
        if table is not None and table.dtype == tensor.dtype and torch.equal(table, tensor):
            continue
        extra[name] = tensor
        if name.endswith("_bucket"):
            original.notes.append(f"{name} is not the table of its sizes; the converted model computes with the latter")


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    if one.storage is other.storage and (one.offset, one.stride) == (other.offset, other.stride):
        return True
    return torch.equal(one.load(), other.load())


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
    content = {
        "args": None,
        "cfg": _complete(original.record.get("cfg") or {}),
        "model": state,
        "criterion": {},
        "optimizer_history": original.record.get("optimizer_history") or [_NO_HISTORY],
        "task_state": {},
        "extra_state": _EXTRA_STATE | (original.record.get("extra_state") or {}),
        "last_optimizer_state": None,
    }
    with atomic_file(path) as temporary:
        torch.save(content, temporary)


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


def _complete(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as the original stores it: plain groups, and the model's arguments in a Namespace."""
    groups: dict[str, Any] = {name: {"_name": None} for name in GROUPS} | dict(cfg)
    model = dict(groups["model"]) | {name: None for name in PATHS if name in groups["model"]}
    return groups | {"model": argparse.Namespace(**model)}


def native_settings(config: UnivalConfig, processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration for a model that did not come from the original: what its loader reads.

    Args:
        config: Of our model.
        processor: Fields of its processor.
    """
    image, video, audio = config.image_encoder, config.video_encoder, config.audio_encoder
    shared = {
        "max_source_positions": config.max_text_positions,
        "max_target_positions": config.max_text_positions,
        "code_dict_size": config.num_codes,
        "num_bins": config.num_bins,
        "patch_image_size": processor.get("image_px", 480),
        "orig_patch_image_size": config.orig_patch_image_size,
        "patch_frame_size": processor.get("video_px", 384),
        "num_frames": processor.get("num_frames", 8),
        "sample_rate": processor.get("sample_rate", 48000),
        "max_audio_len": round(processor.get("sample_rate", 48000) * processor.get("audio_seconds", 10.0)),
        "mel_bins": (audio or {}).get("mel_bins", 64),
        "imagenet_default_mean_and_std": False,
        "max_src_length": 80,
        "max_tgt_length": 30,
        "bpe_dir": "utils/BPE",
        "bpe": None,
        "data": "",
        "selected_cols": None,
        "constraint_range": None,
    }
    flags = (
        *("encoder_normalize_before", "decoder_normalize_before", "share_decoder_input_output_embed"),
        *("share_all_embeddings", "layernorm_embedding", "patch_layernorm_embedding", "code_layernorm_embedding"),
        *("add_type_embedding", "scale_attn", "scale_fc", "scale_heads", "disable_entangle", "no_scale_embedding"),
    )
    depths = {(3, 4, 6, 3): "50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}
    return {
        "task": {"_name": "caption"} | shared,
        "model": {
            "_name": "unival_base",
            "arch": "unival_base",
            "task": "caption",
            **shared,
            **dict.fromkeys(flags, True),
            "entangle_position_embedding": False,
            "encoder_embed_dim": config.d_model,
            "decoder_embed_dim": config.d_model,
            "encoder_ffn_embed_dim": config.encoder_ffn_dim,
            "decoder_ffn_embed_dim": config.decoder_ffn_dim,
            "encoder_layers": config.encoder_layers,
            "decoder_layers": config.decoder_layers,
            "encoder_attention_heads": config.encoder_attention_heads,
            "decoder_attention_heads": config.decoder_attention_heads,
            "attn_scale_factor": config.attn_scale_factor,
            "token_bucket_size": config.text_bucket_size,
            "image_bucket_size": config.image_bucket_size,
            "code_image_size": config.code_image_size,
            "vocab_size": config.vocab_size,
            "dropout": config.dropout,
            "attention_dropout": 0.0,
            "encoder_drop_path_rate": config.drop_path,
            "decoder_drop_path_rate": config.drop_path,
            "resnet_drop_path_rate": 0.0,
            "image_encoder_name": "timm_resnet",
            "resnet_type": (image or {}).get("name", "resnet101"),
            "resnet_model_path": None,
            "freeze_resnet": bool((image or {}).get("frozen_norm")),
            "video_encoder_name": None
            if video is None
            else f"all_resnext{depths.get(tuple(video.get('depths', ())), '101')}",
            "video_model_path": None,
            "freeze_resnet_video": bool((video or {}).get("frozen_norm")),
            "audio_encoder_name": None if audio is None else "pann_cnn14",
            "audio_model_path": None,
            "hop_size": (audio or {}).get("hop", 200),
            "sample_patch_num": None,
            "interpolate_position": config.interpolate_position,
        },
    }


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name; the file takes its own when the block ends without an exception and its bytes are out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
