"""What ``config.json`` says of the vocabulary: its size, and whether the output layer is the embedding."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soups.sources.info import TensorInfo

CONFIG_NAME = "config.json"
HEADED = re.compile("CausalLM|LMHead|ConditionalGeneration|MaskedLM")
# The layer that gives the scores of the vocabulary, as transformers, fairseq and BERT call it.
OUTPUT = re.compile(r"(.*\.)?(lm_head|head|embed_out|output_projection|proj_out|decoder)\.weight")
TIED = re.compile(r'("tie_word_embeddings"\s*:\s*)true')


def tied_embedding(model: Path, infos: Mapping[str, TensorInfo]) -> str | None:
    """Return the embedding of a language model that stores no output layer, which is then the embedding itself."""
    text = _text(model / CONFIG_NAME)
    tables = _tables(text, infos)
    has_head = any(HEADED.search(str(name)) for name in _values(text, "architectures"))
    return tables[0] if has_head and len(tables) == 1 else None


def fit_config(
    folder: Path, before: Mapping[str, TensorInfo], after: Mapping[str, TensorInfo], sources: Mapping[str, str]
) -> None:
    """Write into ``config.json`` that the vocabulary has grown, or that the output layer is no longer the embedding.

    All else in the file stays as it is.

    Args:
        folder: of the result, with the configuration of another model.
        before: the tensors of that other model; equal where they are one, at one place in a file.
        after: those of the result; their names may have a prefix more.
        sources: of the tensors of the result: the name itself, or of what it is tied to.
    """
    text = _text(folder / CONFIG_NAME)
    tables = _tables(text, before)
    now = [name for name in after if any(f".{name}".endswith(f".{table}") for table in tables)]
    rows = {after[name].shape[0] for name in now}
    fitted = text
    if len(rows) == 1:
        fitted = re.sub(r'("vocab_size"\s*:\s*)\d+', rf"\g<1>{rows.pop()}", fitted)
    heads = [
        name
        for name in filter(OUTPUT.fullmatch, after)
        if name not in before or any(before[name] == before[table] for table in tables if table != name)
    ]
    alike = {head: [n for n in now if n != head and after[n].shape == after[head].shape] for head in heads}
    if any(names and sources[head] not in {sources[name] for name in names} for head, names in alike.items()):
        fitted = TIED.sub(r"\g<1>false", fitted)
        if "tie_word_embeddings" not in fitted:
            fitted = re.sub(r"\{", '{\n  "tie_word_embeddings": false,', fitted, count=1)
    if fitted != text:
        (folder / CONFIG_NAME).write_text(fitted, encoding="utf-8")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # not there, or nothing that could be changed
        return "{}"


def _tables(text: str, infos: Mapping[str, TensorInfo]) -> list[str]:
    """Return the matrices with a row per word of the vocabulary; none where there are several vocabularies."""
    sizes = {size for size in _values(text, "vocab_size") if isinstance(size, int)}
    return [name for name, info in infos.items() if len(info.shape) == 2 and sizes == {info.shape[0]}]


def _values(text: str, key: str) -> list[Any]:
    """Return what the configuration and those of its parts say under a key; nothing of a file that is damaged."""
    found: list[Any] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        for value in (value for name, value in pairs if name == key):
            found.extend(value if isinstance(value, list) else [value])

    try:
        json.loads(text, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return []
    return found
