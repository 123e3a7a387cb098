r"""Score any causal language model of ``transformers``: generate an answer to every prompt and reward it.

Rewards have the interface of TRL: ``reward(prompts=[...], completions=[...], **columns)`` returns one number per
prompt; columns are the other fields of the prompts' records. One with settings of its own is written
``{"function": "module:function", "args": {...}}``. Several rewards give a front::

    soups sweep runs/short runs/kind --evaluator soups.evaluators.causal_lm:evaluator \
        --arg prompts=prompts.jsonl --arg 'rewards={"brevity": "rewards:brevity", "kindness": "rewards:kindness"}' \
        -o runs/sweep

A checkpoint may be a folder of ``save_pretrained`` or a LoRA adapter of PEFT, whose base is then loaded. Where
``transformers`` renames or joins tensors as it loads them, such as the experts of Mixtral, every point is written to a
folder, in the dtype of the checkpoints, and loaded from there.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError
from soups.evaluator import import_function
from soups.state import MAX_LISTED, open_checkpoint

if TYPE_CHECKING:
    import torch

Record = Mapping[str, Any]
Reward = Callable[..., Sequence[float]]
Spec = str | Mapping[str, Any]  # of a reward: its name, or name and arguments
MAX_SAMPLES = 8
DTYPES = ("float32", "bfloat16", "float16")


class CausalLMEvaluator:
    """Generates greedily, so that equal weights give equal answers, and scores what was generated.

    Args:
        model: a causal language model with ``generate``.
        tokenizer: its tokenizer.
        records: what to answer: each has a ``prompt``, further fields go to the rewards.
        rewards: functions of prompts and completions by name.
        max_new_tokens: longest answer.
        batch_size: prompts at a time; prompts of similar length go together.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        records: Sequence[Record],
        rewards: Mapping[str, Reward],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 8,
    ) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._tokenizer.padding_side = "left"  # so that every answer starts right after its prompt
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._records = records
        self._rewards = rewards
        self._options = {"max_new_tokens": max_new_tokens, "do_sample": False, "num_beams": 1}
        self._batch_size = batch_size
        self._completions: list[str] = []

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the model."""
        return self._model.state_dict()

    def evaluate(self) -> dict[str, list[float]]:
        """Return the rewards of the current weights, one per prompt."""
        self._completions = self._generate([record["prompt"] for record in self._records])
        return score(self._rewards, self._records, self._completions)

    def samples(self) -> list[dict[str, str]]:
        """Return the first prompts with their answers."""
        pairs = zip(self._records[:MAX_SAMPLES], self._completions[:MAX_SAMPLES], strict=True)
        return [{"prompt": record["prompt"], "output": output} for record, output in pairs]

    def _generate(self, prompts: Sequence[str]) -> list[str]:
        import torch

        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        completions = [""] * len(prompts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            inputs = self._tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True)
            inputs = {
                name: inputs[name].to(self._model.device) for name in ("input_ids", "attention_mask") if name in inputs
            }
            with torch.no_grad():
                pad = self._tokenizer.pad_token_id
                ids = self._model.generate(**inputs, **self._options, pad_token_id=pad)
            texts = self._tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                completions[index] = text.strip()
        return completions


class ReloadingEvaluator:
    """Scores a model whose tensors have other names than those of its files: loads it again for every point."""

    def __init__(self, load: Callable[[Path], CausalLMEvaluator]) -> None:
        self._load = load
        self._samples: list[dict[str, str]] = []

    def evaluate_checkpoint(self, path: Path) -> dict[str, list[float]]:
        """Return the rewards of the checkpoint at ``path``, one per prompt."""
        live = self._load(path)
        scores = live.evaluate()
        self._samples = live.samples()
        return scores

    def samples(self) -> list[dict[str, str]]:
        """Return the first prompts with their answers."""
        return self._samples


def score(
    rewards: Mapping[str, Reward], records: Sequence[Record], completions: Sequence[str]
) -> dict[str, list[float]]:
    """Return every reward of every completion, by name."""
    prompts = [record["prompt"] for record in records]
    columns = {key: [record.get(key) for record in records] for key in records[0] if key != "prompt"}
    return {
        name: [float(value) for value in reward(prompts=prompts, completions=list(completions), **columns)]
        for name, reward in rewards.items()
    }


def evaluator(
    checkpoint_path: Path,
    prompts: str,
    rewards: str | Mapping[str, Spec],
    limit: int | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 8,
    device: str = "auto",
    dtype: str = "float32",
) -> CausalLMEvaluator | ReloadingEvaluator:
    """Load the model and its tokenizer, from disk only.

    Args:
        checkpoint_path: the first checkpoint.
        prompts: JSON lines with a ``prompt`` each, or a text file with one prompt per line.
        rewards: ``module:function``, or several by name, each with arguments if it has any.
        limit: the first prompts only.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
        dtype: of the live weights: float32, as small updates vanish in bfloat16.

    Raises:
        UserError: no prompts, no such reward, or no such dtype.
    """
    import torch
    from transformers import AutoTokenizer

    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", where="--arg dtype", fix=f"choices: {', '.join(DTYPES)}")
    functions = load_rewards(rewards)
    records = read_prompts(Path(prompts), limit)
    folder = model_folder(Path(checkpoint_path))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}

    def load(path: Path) -> CausalLMEvaluator:
        model = _load_model(path, getattr(torch, dtype)).to(chosen)
        return CausalLMEvaluator(model, tokenizer, records, functions, **options)

    live = load(folder)
    return live if open_checkpoint(folder).infos.keys() <= live.state().keys() else ReloadingEvaluator(load)


def _load_model(path: Path, dtype: torch.dtype) -> Any:
    """Load a model from disk; a tensor that its files lack would be random at every point.

    Raises:
        UserError: there is such a tensor.
    """
    from transformers import AutoModelForCausalLM

    found: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    model, info = found
    lacking = sorted(map(str, info["missing_keys"]))[:MAX_LISTED]
    if lacking:
        what = f"this checkpoint lacks tensors of {type(model).__name__}: {', '.join(lacking)}"
        raise UserError(what, where=str(path), fix="give a whole causal language model, and its config.json")
    return model


def model_folder(checkpoint_path: Path) -> Path:
    """Return the folder with the model's configuration: the checkpoint's, or that of an adapter's base."""
    config = checkpoint_path / "adapter_config.json"
    if not config.is_file():
        return checkpoint_path if checkpoint_path.is_dir() else checkpoint_path.parent
    base = Path(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    if not base.is_dir():
        raise UserError(f"the base of this adapter is not here: {base}", where=str(config), fix="download it")
    return base


def load_rewards(rewards: str | Mapping[str, Spec], where: str = "--arg rewards") -> dict[str, Reward]:
    """Import the rewards; one given alone is called by the name of its function.

    Raises:
        UserError: no reward, or one that is not there or does not take its arguments.
    """
    specs = {rewards.rpartition(":")[2]: rewards} if isinstance(rewards, str) else dict(rewards)
    if not specs:
        raise UserError("no reward", where=where, fix="give module:function")
    return {name: _reward(name, spec, where) for name, spec in specs.items()}


def _reward(name: str, spec: Spec, where: str) -> Reward:
    if isinstance(spec, str):
        return import_function(spec, where)
    if not isinstance(spec.get("function"), str) or spec.keys() - {"function", "args"}:
        fix = 'write "module:function", or {"function": "module:function", "args": {...}}'
        raise UserError(f"reward {name!r} is {dict(spec)!r}", where=where, fix=fix)
    function, args = import_function(spec["function"], where), dict(spec.get("args") or {})
    try:
        inspect.signature(function).bind(prompts=[], completions=[], **args)
    except TypeError as error:
        raise UserError(f"reward {name!r}: {error}", where=where, fix=f"check its args: {args}") from None
    return functools.partial(function, **args)


def read_prompts(path: Path, limit: int | None = None) -> list[Record]:
    """Read the records of a file.

    Raises:
        UserError: no such file, a line that is no record, or no prompt at all.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError("cannot read the prompts", where=str(path), fix="give --arg prompts=FILE") from error
    records = [_record(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()][:limit]
    if not records:
        raise UserError("no prompts in this file", where=str(path), fix='one per line: {"prompt": "..."}')
    return records


def _record(line: str, path: Path, number: int) -> Record:
    if path.suffix != ".jsonl":
        return {"prompt": line}
    try:
        record = json.loads(line)
        if isinstance(record["prompt"], str):
            return record
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError("not a record with a prompt", where=f"{path}, line {number}", fix='such as {"prompt": "..."}')
