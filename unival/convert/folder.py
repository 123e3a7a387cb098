"""Read and write `transformers` folders that came from, or go to, a file of the original."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unival import __version__
from unival.checkpoint import COPY_AGAIN, atomic_folder, digest, quiet_transformers, read_config, resolve_model_dir
from unival.convert.arguments import native_settings
from unival.convert.layout import (
    COUNTER,
    EMBEDDING,
    TABLE_NAMES,
    TIED,
    empty_model,
    infer_config,
    original_names,
    shapes_of,
)
from unival.convert.original import Original, merge_settings
from unival.errors import UserError
from unival.model.configuration import UnivalConfig
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import load_bpe_tokenizer

RECORD = "fairseq.json"
EXTRA = "fairseq.safetensors"
REMOVE = "remove it; without it, the file is written as that of a model trained here"
TRAINING_ONLY = {"drop_path_rate", "drop_block_rate", "drop_rate"}  # options of timm that a trained model does without
IMAGENET: dict[str, Any] = {"pixel_mean": [0.485, 0.456, 0.406], "pixel_std": [0.229, 0.224, 0.225]}

CARD = """---
library_name: transformers
tags: [unival]
---
# UnIVAL, converted from `{file}`

UnIVAL (arXiv 2307.16184) with {millions:.1f} M parameters and encoders for {media}. The weights are those of the
original file, bit for bit; nothing was trained or rounded here.

```python
{usage}
```

| provenance | |
| --- | --- |
{provenance}

| file | bytes | sha256 |
| --- | --- | --- |
{files}

`unival convert {folder} {stem}.pt --to fairseq` writes the original's format again. `{record}` keeps what this folder
does not need otherwise: the stored configuration and the order of the tensors.
{notes}"""

WITH_TOKENIZER = """from unival.checkpoint import load_model

model, processor = load_model("{folder}")"""
WITHOUT_TOKENIZER = """from unival.model.modeling import UnivalForConditionalGeneration

# `unival convert ... --tokenizer DIR` writes a folder with a tokenizer, which unival.checkpoint.load_model needs.
model = UnivalForConditionalGeneration.from_pretrained("{folder}")"""


def write_folder(original: Original, folder: Path, tokenizer: str | None) -> dict[str, Any]:
    """Write a `transformers` folder, complete or not at all, and return what its card says.

    Args:
        original: What to write.
        folder: Must not exist, or be empty.
        tokenizer: Folder of a converted model or of BART's files (`load_bpe_tokenizer`); None leaves the tokenizer out.

    Raises:
        UserError: If the folder holds something, or the tokenizer does not belong to the model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder is there already", where=str(folder), fix="remove it or give another name")
    processor = None if tokenizer is None else _make_processor(original, tokenizer)
    if processor is None:
        original.notes.append("no tokenizer: `unival convert ... --tokenizer DIR` adds it")
    model = original.model
    parameters = {name: p.numel() for name, p in model.named_parameters(remove_duplicate=False) if name not in TIED[1:]}
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(original.dtype).removeprefix("torch.")
    with atomic_folder(folder) as temporary:
        with quiet_transformers():
            model.config.save_pretrained(temporary)
            model.generation_config.save_pretrained(temporary)
            if processor is not None:
                processor.save_pretrained(temporary)
        _save(original.tensors, temporary / "model.safetensors")
        if original.extra:
            _save(original.extra, temporary / EXTRA)
        record = original.record | {"order": original.order, "source": original.source}
        if not original.extra.keys().isdisjoint(TIED):  # they belong to this embedding, not to one that is trained on
            record["embedding"] = _fingerprint(original.tensors[EMBEDDING])
        (temporary / RECORD).write_text(json.dumps(record, indent=0) + "\n", encoding="utf-8")
        files = {path.name: digest(path) for path in sorted(temporary.iterdir())}
        usage = WITHOUT_TOKENIZER if processor is None else WITH_TOKENIZER
        card = _card(original, folder.name, usage, sum(parameters.values()), files)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return {"parameters": sum(parameters.values()), "files": files, "has_tokenizer": processor is not None}


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; only those that are strided or share memory with an earlier one are copied for it."""
    storages: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        is_shared = address in storages
        own[name] = tensor.clone(memory_format=torch.contiguous_format) if is_shared else tensor.contiguous()
        storages.add(address)
    save_file(own, path, {"format": "pt"})


def _make_processor(original: Original, folder: str) -> UnivalProcessor:
    """Make the processor that the stored settings describe, with the original's way of cutting clips and sound."""
    config, settings = original.config, original.settings
    tokenizer = _load_tokenizer(folder, config)
    if len(tokenizer) != config.vocab_size:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}",
            where=folder,
            fix="give the tokenizer that the model was trained with",
        )
    audio = config.audio_encoder or {}
    rate = audio.get("sample_rate", 48000)
    sizes = {
        "image_px": ("patch_image_size", 480),
        "video_px": ("patch_frame_size", 384),
        "num_frames": ("num_frames", 8),
    }
    options = {name: _positive(settings.get(key), default) for name, (key, default) in sizes.items()}
    return UnivalProcessor(
        tokenizer,
        num_bins=config.num_bins,
        **options,
        sample_rate=rate,
        audio_seconds=_positive(settings.get("max_audio_len"), 10 * rate) / rate,
        video_fit="centre_crop",
        audio_pad="repeat",
        audio_crop="centre",
        audio_int16=settings.get("audio_sample_rate") is not True,
        **(IMAGENET if settings.get("imagenet_default_mean_and_std") is True else {}),
    )


def _load_tokenizer(folder: str, config: UnivalConfig) -> PreTrainedTokenizerFast:
    """Load a whole tokenizer of this model, or make one of BART's files."""
    if (Path(folder) / "tokenizer.json").is_file():
        with quiet_transformers():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if len(tokenizer) == config.vocab_size:
            return tokenizer
    return load_bpe_tokenizer(folder, config.num_codes, config.num_bins)


def _positive(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _card(original: Original, folder: str, usage: str, parameters: int, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the model card; strings from the file pass a filter, as they end in Markdown and on terminals."""
    settings, record, source = original.settings, original.record, original.source
    media = [kind for kind in ("image", "video", "audio") if getattr(original.config, f"{kind}_encoder") is not None]
    history = record.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history and isinstance(history[-1], dict) else {}
    iterator = (record.get("extra_state") or {}).get("train_iterator")
    provenance = {
        **source,
        "dtype": str(original.dtype).removeprefix("torch."),
        "task": settings.get("task"),
        "architecture": settings.get("arch", settings.get("_name")),
        "epoch": iterator.get("epoch") if isinstance(iterator, dict) else None,
        "updates": last.get("num_updates"),
        "criterion": last.get("criterion_name"),
        "converted by": f"unival {__version__}",
    }
    rows = [f"| {name} | {_safe(value)} |" for name, value in provenance.items() if value is not None]
    return CARD.format(
        file=_safe(source["file"]),
        folder=_safe(folder),
        usage=usage.format(folder=_safe(folder)),
        stem=_safe(Path(source["file"]).stem),
        millions=parameters / 1e6,
        media=", ".join(media) or "text only",
        provenance="\n".join(rows),
        files="\n".join(f"| {name} | {entry['bytes']} | `{entry['sha256']}` |" for name, entry in files.items()),
        record=RECORD,
        notes="".join(f"\nNote: {note}.\n" for note in original.notes),
    )


def _safe(value: Any) -> str:
    return re.sub(r"[^\w .,:+/-]", "_", str(value), flags=re.ASCII)[:120]


def read_folder(folder: Path) -> Original:
    """Read a `transformers` folder, converted or trained here, for writing it as the original does.

    Raises:
        UserError: If the folder is not a complete UnIVAL model.
    """
    folder = resolve_model_dir(folder)
    config = read_config(folder)
    try:
        tensors = load_file(folder / "model.safetensors")
        record = _read_record(folder)
        extra = load_file(folder / EXTRA) if record and (folder / EXTRA).is_file() else {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"unreadable weights: {error}", where=str(folder), fix=COPY_AGAIN) from None
    for name in TIED[1:]:
        tensors.pop(name, None)
    notes: list[str] = []
    model = empty_model(config, str(folder))
    expected, found = shapes_of(model.state_dict()), shapes_of(tensors)
    names = list(expected)
    wrong = sorted(name for name in {*names, *found}.difference(TIED[1:]) if expected.get(name) != found.get(name))
    if wrong:
        what = f"{len(wrong)} tensors do not fit config.json: {', '.join(wrong[:10])}"
        raise UserError(what, where=str(folder), fix=COPY_AGAIN)
    if config.lora_rank:
        _merge_low_rank(tensors, config.lora_alpha / config.lora_rank)
        config.lora_rank = 0
        model = empty_model(config, str(folder))
        names = list(model.state_dict())
        notes.append("the low-rank updates (LoRA) were added to the matrices they belong to")
    source = {"file": folder.name, "format": "transformers", "weights": "raw"}
    if record:
        copies = [name for name in TIED if name in extra]
        if copies and record.get("embedding") != _fingerprint(tensors[EMBEDDING]):
            extra = {name: tensor for name, tensor in extra.items() if name not in TIED}
            notes.append(f"the embedding has changed since the conversion; so has what was {', '.join(copies)}")
        _check_order(record["order"], tensors, extra, str(folder / RECORD))
        return Original(model, tensors, extra, record.pop("order"), record, record.pop("source", source), notes)
    cfg = native_settings(model.config, _read_json(folder / "processor_config.json"))
    _check_reads_back(model.config, shapes_of(tensors), cfg, str(folder))
    return Original(model, tensors, {}, original_names(names), {"cfg": cfg}, source, notes + _limits(model.config))


def _check_reads_back(config: UnivalConfig, shapes: Mapping[str, Any], cfg: dict[str, Any], where: str) -> None:
    """Refuse encoders that a file would not show: it holds tensors and the name of a ResNet, not timm's options."""
    fix = "use a plain ResNet without other options (docs/model.md), or keep the folder, which holds everything"
    try:
        inferred = infer_config(shapes, merge_settings({"cfg": cfg}), where)
        found = empty_model(inferred, where)
    except UserError as error:
        raise UserError(f"the original's format cannot hold this model: {error.what}", where, fix) from None
    media = [
        f"{kind}_encoder" for kind in ("image", "video", "audio") if getattr(config, f"{kind}_encoder") is not None
    ]
    kept = {name: {k: v for k, v in getattr(config, name).items() if k not in TRAINING_ONLY} for name in media}
    expected = empty_model(UnivalConfig.from_dict(config.to_dict() | kept), where)
    for name in media:
        module = f"embed_{name.removesuffix('_encoder')}s"
        if repr(getattr(expected.encoder, module)) != repr(getattr(found.encoder, module, None)):
            what = f"the original's format cannot hold {name} {getattr(config, name)}"
            raise UserError(f"{what}: it would come back as {getattr(inferred, name)}", where, fix)


def _merge_low_rank(tensors: dict[str, Tensor], scale: float) -> None:
    """Add every low-rank update to its matrix, in place: the original knows no such updates."""
    for name in [name for name in tensors if name.endswith(".lora_A")]:
        matrix = name.removesuffix("lora_A") + "weight"
        down, up = tensors.pop(name).double(), tensors.pop(name.removesuffix("A") + "B").double()
        tensors[matrix] = (tensors[matrix].double() + scale * up @ down).to(tensors[matrix].dtype)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", where=str(path), fix=COPY_AGAIN) from None
    return value if isinstance(value, dict) else {}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return the side file of a converted folder; None of any other."""
    record = {key: value for key, value in _read_json(folder / RECORD).items() if value is not None}
    if "order" not in record:
        return None
    kinds = {"order": list, "optimizer_history": list, "embedding": str}
    kinds |= dict.fromkeys(("cfg", "args", "extra_state", "versions", "source"), dict)
    is_right = all(isinstance(record[key], kind) for key, kind in kinds.items() if key in record)
    if not is_right or not all(isinstance(name, str) for name in record["order"]):
        raise UserError("not the record of a conversion", where=str(folder / RECORD), fix=REMOVE)
    return record


def _check_order(order: list[str], tensors: Mapping[str, Tensor], extra: Mapping[str, Tensor], where: str) -> None:
    """Refuse a record that leaves out tensors, names others, or one twice: the model has changed since."""
    named = {*order}
    tied = {name for name in TIED if name in named}
    needed = {name for name in tensors if not name.endswith(COUNTER)}.union(extra).difference(TIED)
    wrong = (needed - named) | (named - {*tensors, *extra, *TIED, *TABLE_NAMES}) | ({*extra} & {*tensors} - {*TIED})
    if wrong or not tied or len(named) < len(order):
        listed = ", ".join(sorted(wrong)[:10]) or "one is named twice, or the embedding is missing"
        raise UserError(f"{len(wrong)} tensors are not those of the conversion: {listed}", where=where, fix=REMOVE)


def _fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _limits(config: UnivalConfig) -> list[str]:
    """Say which parts the original cannot build."""
    notes = []
    image, video = config.image_encoder, config.video_encoder
    if image is not None and (set(image) - {"name", "classifier", "frozen_norm"} or "resnet" not in str(image["name"])):
        notes.append("the original cannot build this image encoder")
    if video is not None and list(video.get("planes", (128, 256, 512, 1024))) != [128, 256, 512, 1024]:
        notes.append("the original cannot build this video encoder")
    if config.audio_encoder is not None:
        notes.append("the original's evaluation replaces the mel filters of the file by its own (specification 9.4)")
    return notes
