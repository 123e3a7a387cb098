"""What fits by its tensors and yet may be another model: settings, tokenizers, bases of adapters; from small files."""

from __future__ import annotations

import filecmp
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from soups.sources.config import CONFIG_NAME
from soups.sources.lora import CONFIG_NAME as ADAPTER_CONFIG
from soups.state import Checkpoint

TOKENIZER_NAME = "tokenizer.json"
MAX_NAMED = 6
# Settings of a run or of a save, which change nothing of what the weights mean.
HARMLESS = re.compile(
    r"_.*|architectures|auto_map|transformers_version|(torch_)?dtype|use_cache|output_\w+|return_dict|gradient_\w+|"
    r".*dropout.*|.*_drop|id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|"
    r".*_token_id|initializer_\w+|vocab_size|tie_word_embeddings|attn_implementation|max_length|name_or_path"
)


def disagreements(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a line for each model whose settings, tokenizer or base differ from those of the first.

    The result has those of one model, so that the others' weights may mean something else in it.
    """
    first, lines = checkpoints[0], []
    config, words = _read(first.model_path / CONFIG_NAME), first.model_path / TOKENIZER_NAME
    for other in checkpoints[1:]:
        pair = f"{other.name} and {first.name}"
        names = _differing(_read(other.model_path / CONFIG_NAME), config)
        if names:
            lines.append(f"the configurations of {pair} differ in {_listed(names)}")
        if not _same_words(other.model_path / TOKENIZER_NAME, words):
            lines.append(f"the tokenizers of {pair} have other entries under the same ids")
        bases = [str(_read(c.path / ADAPTER_CONFIG).get("base_model_name_or_path") or "") for c in (other, first)]
        if all(bases) and bases[0].rstrip("/") != bases[1].rstrip("/"):
            lines.append(f"the adapters {pair} name different bases: {bases[0]}, {bases[1]}")
    return lines


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty where there is none that can be read."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def _differing(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of settings that both have with different values."""
    found: list[str] = []
    for name in sorted(one.keys() & two.keys()):
        if one[name] == two[name] or HARMLESS.fullmatch(name):
            continue
        if isinstance(one[name], Mapping) and isinstance(two[name], Mapping):
            found += _differing(one[name], two[name], f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def _same_words(one: Path, two: Path) -> bool:
    """Say whether two tokenizers have the same entry under every id of both; a missing one differs from none.

    Those of language models are megabytes, which are parsed only where the files are not the same.
    """
    with suppress(OSError):
        if filecmp.cmp(one, two, shallow=False):
            return True
    entries, others = _vocabulary(one), _vocabulary(two)
    return all(entries[number] == others[number] for number in entries.keys() & others.keys())


def _vocabulary(path: Path) -> dict[int, str]:
    """Return the entry of every id of a tokenizer."""
    model = _read(path).get("model")
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, dict):
        return {number: text for text, number in entries.items()}
    if isinstance(entries, list):  # unigram: pairs of a text and its score
        return {number: str(entry[:1]) for number, entry in enumerate(entries)}
    return {}


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{', '.join(names[:MAX_NAMED])}{more}"
