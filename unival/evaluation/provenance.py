"""What can change the numbers of an evaluation, written beside them: model, tokenizer, data, search, versions."""

import hashlib
import inspect
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unival import __version__
from unival.data.archive import expand
from unival.errors import UserError
from unival.generate import SearchOptions
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.registry import is_own
from unival.schema import EvaluationConfig, SourceConfig
from unival.tasks.base import Task

PACKAGES = (
    *("transformers", "tokenizers", "numpy", "pillow", "av", "soundfile", "torchvision", "torchaudio", "timm"),
    *("decord", "torchcodec", "datasets", "open_clip_torch"),
)
FILE_ARGUMENTS = ("document_frequencies", "candidates_file", "captions_file", "objects_file", "answer_types_file")
PROCESSOR_FIELDS = tuple(inspect.signature(UnivalProcessor).parameters)[1:]  # but for the tokenizer


def settings(
    model: UnivalForConditionalGeneration,
    processor: UnivalProcessor,
    task: Task,
    config: EvaluationConfig,
    search: SearchOptions,
    weights: str,
) -> dict[str, Any]:
    """Return everything known before the first prediction that can change one.

    Args:
        model, processor, task, config: Of the evaluation.
        search: Its settings for a batch; with a prompt before the answer, `max_len_b` counts that prompt too.
        weights: `weights_hash` of the model.
    """
    arguments, kind = task.model_dump(mode="json"), model.device.type
    files = {name: arguments[name] for name in FILE_ARGUMENTS if arguments.get(name)}
    return {
        "task": config.task,
        **({"task_sha256": file_hash(config.task)} if is_own(config.task) else {}),
        "task_args": arguments,
        "search": asdict(search) | {"decoder": "sample" if search.sampling else "beam"},
        "source": config.source.model_dump(mode="json", exclude_defaults=True),
        "source_files": source_files(config.source),
        "files": {name: {"path": path, "sha256": needed_hash(name, path)} for name, path in files.items()},
        "processor": {name: getattr(processor, name) for name in PROCESSOR_FIELDS},
        "tokenizer_sha256": text_hash([processor.tokenizer.backend_tokenizer.to_str()]),
        "weights_sha256": weights,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None,
        "device": kind,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that computes, and on what it does."""
    found = {"unival": __version__, "python": platform.python_version(), "torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return found | {"machine": machine, "threads": f"{torch.get_num_threads()} threads"}


def weights_hash(model: UnivalForConditionalGeneration) -> str:
    """Return the sha256 over names, types, shapes and bytes of the weights, in order of names; one of a tie counts."""
    digest = hashlib.sha256()
    tied = model._tied_weights_keys
    for name, tensor in sorted(model.state_dict().items()):
        if name not in tied:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def split_hash(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the sha256 of the text fields of all rows, in order."""
    return text_hash(json.dumps(record, sort_keys=True, ensure_ascii=False) for record in records)


def text_hash(texts: Iterable[str]) -> str:
    """Return the sha256 of texts, one per line."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()


def file_hash(path: str | Path) -> str | None:
    """Return the sha256 of a file's bytes, None when there is no such file."""
    path = Path(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def needed_hash(name: str, path: str) -> str:
    """Return the sha256 of a file that an argument names.

    Raises:
        UserError: There is none; said now, and not when everything is predicted.
    """
    found = file_hash(path)
    if found is None:
        raise UserError(f"task_args.{name}: there is no file {path}", fix="check the path")
    return found


def source_files(source: SourceConfig) -> dict[str, Any]:
    """Return by kind of source what changes when its files do; many files are one hash of their sizes and times.

    Pictures that a manifest or a table names are not looked at.
    """
    found: dict[str, Any] = {"manifest": file_state(source.manifest), "tsv": file_state(source.tsv)}
    paths = []
    if source.webdataset is not None:
        given = source.webdataset
        paths = [path for name in ([given] if isinstance(given, str) else given) for path in expand(name)]
    elif source.huggingface is not None:
        folder = Path(source.huggingface)
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    if paths:
        found["others"] = text_hash(f"{path} {file_state(str(path))}" for path in paths)
    return found


def files_of(arguments: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the sha256 of every file that arguments name, and of the files of every folder, by path."""
    paths = [Path(value) for value in arguments.values() if isinstance(value, str) and value]
    found = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return {str(path): file_hash(path) for path in found if path.is_file()}


def file_state(path: str | None) -> dict[str, int] | None:
    """Return size and time of a file, by which a changed one is noticed; None when there is none."""
    if path is None or not Path(path).is_file():
        return None
    facts = Path(path).stat()
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
