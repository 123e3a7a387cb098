"""Tune a LoRA adapter of a causal language model on rewards: group relative policy optimisation.

    python -m soups.trainers.grpo configs/soups/train/summary.yaml model=models/lm out=runs/a 'rewards={similar: 1}'

For every prompt several answers are sampled; each is pushed up or down by its reward, less the mean of its group and
divided by its deviation (Shao et al. 2024, arXiv:2402.03300), with clipped ratios and a penalty for leaving the base
model. The adapter is a folder of PEFT, which `soups` mixes with others as a difference from the base. Rewards are
those of `soups.evaluators.causal_lm`; several with weights are the baseline that trains on mixed rewards (MORL).

Shapes: B prompts, K answers of each, L tokens of prompt and answer, T of the answer.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from soups.errors import UserError, did_you_mean
from soups.evaluators.causal_lm import Record, load_rewards, read_prompts, score
from soups.study.schema import Section
from soups.trainers.entry import TrainerSettings, output, run

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER, LOG = "adapter", "log.jsonl"


class Lora(Section):
    """The adapter."""

    rank: int = Field(default=8, gt=0)
    alpha: float = Field(default=16.0, gt=0)
    """The update is `alpha / rank` times the product of its factors."""
    targets: list[str] = Field(default=["q_proj", "k_proj", "v_proj", "o_proj"], min_length=1)
    """Ends of the names of the linear layers that get one."""


class Settings(TrainerSettings):
    """One training; `out` gets the adapter in `adapter`, and one line per step in `log.jsonl`."""

    model: str
    """Folder of the base, of `save_pretrained`."""
    prompts: str
    """JSON lines with a `prompt` each; other fields go to the rewards."""
    functions: dict[str, str | dict[str, Any]] = Field(min_length=1)
    """Rewards by name: `module:function`, or `{function: ..., args: {...}}`."""
    rewards: dict[str, float] = Field(min_length=1)
    """Weights of those that are trained on."""
    batch: int = Field(default=4, gt=0)
    """Prompts per step."""
    samples: int = Field(default=4, ge=2)
    """Answers per prompt."""
    updates: int = Field(default=1, gt=0)
    """Updates per step; the ratios of the first are one, and clipping matters from the second on."""
    max_new_tokens: int = Field(default=32, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    """Of the policy: of sampling and of all probabilities."""
    lr: float = Field(default=1e-4, gt=0)
    clip: float = Field(default=0.2, gt=0, lt=1)
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the base."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora: Lora = Lora()


class Answers(NamedTuple):
    """Sampled answers.

    Attributes:
        ids: (B * K, L) prompts, padded on the left, with their answers.
        attention: (B * K, L), 0 at padding.
        mask: (B * K, T), True at the tokens of the answers, their end included.
        texts: the answers.
        samples: K.
    """

    ids: Tensor
    attention: Tensor
    mask: Tensor
    texts: list[str]
    samples: int


def train(settings: Settings, report: Callable[[str], None] = lambda line: None) -> None:
    """Train and write the adapter, whole or not at all.

    Raises:
        UserError: something is missing: the base, PEFT, prompts, a reward.
    """
    import torch

    functions = load_rewards(settings.functions, "functions")
    for name in settings.rewards:
        if name not in functions:
            raise UserError(f"no reward is called {name!r}", where="rewards", fix=did_you_mean(name, functions))
    records = read_prompts(Path(settings.prompts))
    model, tokenizer = load(settings)
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.lr, weight_decay=0.0)
    used = {name: functions[name] for name in settings.rewards}
    lines, start = [], time.monotonic()
    for step, batch in zip(range(settings.steps), batches(records, settings), strict=False):
        answers = sample(model, tokenizer, [record["prompt"] for record in batch], settings)
        terms = score(used, [record for record in batch for _ in range(settings.samples)], answers.texts)
        total = sum(weight * torch.tensor(terms[name]) for name, weight in settings.rewards.items())
        assert isinstance(total, torch.Tensor)
        logs = update(model, optimizer, answers, advantages(total.view(-1, settings.samples)).flatten(), settings)
        logs |= {"reward": float(total.mean())} | {f"reward/{name}": sum(v) / len(v) for name, v in terms.items()}
        logs |= {"length": float(answers.mask.sum(1).float().mean()), "seconds": time.monotonic() - start}
        lines.append(json.dumps({"step": step + 1} | {name: round(value, 5) for name, value in logs.items()}))
        report(lines[-1])
    with output(settings) as folder:
        model.save_pretrained(folder / ADAPTER)
        (folder / LOG).write_text("\n".join(lines) + "\n", encoding="utf-8")


def load(settings: Settings) -> tuple[Any, Any]:
    """Return the base with a new adapter, which changes nothing yet, and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        from peft import LoraConfig, get_peft_model  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise UserError("PEFT is not installed", fix='pip install "unival[adapters]"') from None
    path = Path(settings.model)
    if not (path / "config.json").is_file():
        raise UserError("no model in this folder", where=str(path), fix="give a folder of save_pretrained")
    torch.manual_seed(settings.seed)  # of the adapter's first factor
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # An absolute path: whoever reads the adapter looks for its base there.
    base = AutoModelForCausalLM.from_pretrained(path.resolve(), dtype=torch.float32, local_files_only=True)
    base.to("cuda" if torch.cuda.is_available() else "cpu")  # pyright: ignore[reportArgumentType]
    lora, names = settings.lora, [name for name, _ in base.named_modules()]
    missing = [target for target in lora.targets if not any(name.split(".")[-1] == target for name in names)]
    if missing:
        there = {name.split(".")[-1] for name, part in base.named_modules() if isinstance(part, torch.nn.Linear)}
        raise UserError(f"no layer is called {missing[0]!r}", where="lora.targets", fix=did_you_mean(missing[0], there))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM")
    return get_peft_model(base, config), tokenizer


def batches(records: Sequence[Record], settings: Settings) -> Iterator[list[Record]]:
    """Yield batches for ever; every prompt comes once before any comes again."""
    rng, waiting = random.Random(settings.seed), []
    while True:
        while len(waiting) < settings.batch:
            waiting += rng.sample(list(records), len(records))
        batch, waiting = waiting[: settings.batch], waiting[settings.batch :]
        yield batch


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], settings: Settings) -> Answers:
    """Draw answers from the model without dropout."""
    import torch

    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    model.eval()
    samples = settings.samples
    repeated = {name: inputs[name].repeat_interleave(samples, 0) for name in ("input_ids", "attention_mask")}
    # Whatever `generation_config.json` says: the policy is the model at the temperature, and nothing is cut off.
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
    with torch.no_grad():
        ids = model.generate(
            **repeated,
            past_key_values=read(model, inputs["input_ids"], inputs["attention_mask"], samples),
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )
    length = inputs["input_ids"].shape[1]
    own = ids[:, length:]
    ends = torch.isin(own, torch.tensor(end_ids(model, tokenizer), device=own.device))
    mask = ends.long().cumsum(1) - ends.long() == 0  # up to the first end, itself included
    attention = torch.cat([repeated["attention_mask"], mask.long()], dim=1)
    texts = tokenizer.batch_decode(own.masked_fill(~mask, tokenizer.pad_token_id), skip_special_tokens=True)
    return Answers(ids, attention, mask, [text.strip() for text in texts], samples)


def read(model: Any, ids: Tensor, attention: Tensor, samples: int) -> Any:
    """Return what attention keeps of prompts (B, P) without their last token, repeated for K answers.

    Prompts are longer than answers, so that reading each once is most of what there is to save.
    """
    from transformers import DynamicCache

    if ids.shape[1] == 1:
        return DynamicCache()
    kept = {"input_ids": ids[:, :-1], "attention_mask": attention[:, :-1], "position_ids": positions(attention)[:, :-1]}
    cache = model(**kept, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(samples)
    return cache


def positions(attention: Tensor) -> Tensor:
    """Return the place of each token; padding is on the left."""
    return (attention.cumsum(1) - 1).clamp(min=0)


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens at which `generate` stops."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return list(ends) if isinstance(ends, list | tuple) else [ends]


def advantages(rewards: Tensor) -> Tensor:
    """Return rewards (B, K) less the mean of their group, divided by its deviation."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, correction=0, keepdim=True) + 1e-4)


def log_probs(model: Any, answers: Answers, temperature: float) -> Tensor:
    """Return the log-probability (B * K, T) of each token of the answers."""
    ids, attention, start = answers.ids, answers.attention, answers.ids.shape[1] - answers.mask.shape[1]
    cache = read(model, ids[:: answers.samples, :start], attention[:: answers.samples, :start], answers.samples)
    # The last token of the prompt and all of the answer but its last: each tells the next.
    logits = model(
        input_ids=ids[:, start - 1 : -1],
        attention_mask=attention[:, :-1],
        position_ids=positions(attention)[:, start - 1 : -1],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return (logits.float() / temperature).log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


def update(model: Any, optimizer: Any, answers: Answers, weights: Tensor, settings: Settings) -> dict[str, float]:
    """Minimise `-min(r A, clip(r) A) + kl D`, averaged over the tokens of an answer, then over answers; return logs."""
    import torch

    share = answers.mask / (answers.mask.sum(1, keepdim=True) * len(answers.mask))  # of each token in the mean
    weights = weights.to(share)[:, None]
    base = old = divergence = torch.zeros(())
    if settings.kl > 0.0:
        with torch.no_grad(), model.disable_adapter():
            base = log_probs(model, answers, settings.temperature)
    logs = {}
    for number in range(settings.updates):
        own = log_probs(model, answers, settings.temperature)
        old = own.detach() if number == 0 else old
        ratio = (own - old).exp()
        loss = -torch.minimum(ratio * weights, ratio.clamp(1 - settings.clip, 1 + settings.clip) * weights)
        if settings.kl > 0.0:
            # r - 1 - log r with r = p_base / p: unbiased, never negative (Schulman, joschu.net/blog/kl-approx.html)
            divergence = (base - own).exp() - 1 - (base - own)
            logs["kl"] = float((divergence.detach() * share).sum())
        value = ((loss + settings.kl * divergence) * share).sum()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
    return logs


if __name__ == "__main__":
    run(Settings, train, "soups/trainers/grpo.py explains the keys")
