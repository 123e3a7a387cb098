"""AdamW as in the original (decay on every parameter) and schedules over the steps of a stage (specification 5)."""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn

from unival.errors import UserError, did_you_mean
from unival.schema import OptimConfig, StageConfig

# Tables that are fixed in the original, and a classifier that is stored but not used.
NEVER_TRAINED = ("*.melW", "*.spectrogram_extractor.", "encoder.embed_images.fc.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, one group per `lr_scale` (kept in the group as `scale`).

    Raises:
        UserError: If a key of `lr_scale` matches no trainable parameter.
    """
    groups: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in [*config.lr_scale, ""]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next(pattern for pattern in groups if matches(name, [pattern]))].append(parameter)
    for pattern in config.lr_scale:
        if not groups[pattern]:
            tops = {".".join(name.split(".")[:2]) for name, _ in model.named_parameters()}
            raise UserError(
                f"lr_scale: no trainable parameter starts with {pattern!r}", fix=did_you_mean(pattern, tops)
            )
    return torch.optim.AdamW(
        [{"params": group, "scale": config.lr_scale.get(key, 1.0)} for key, group in groups.items() if group],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of update `step` (0-based) of `num_steps`.

    Linear warm-up over `int(num_steps * warmup_ratio)` or `warmup_steps` updates, then the schedule, which reaches zero
    at `num_steps`.
    """
    warmup = int(num_steps * config.warmup_ratio) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr * (1.0 - done)


def freeze(model: nn.Module, stage: StageConfig) -> None:
    """Mark as trainable what the stage trains, and only that.

    Raises:
        UserError: If an entry of `freeze` or `train_only` matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for option, patterns in (("freeze", stage.freeze), ("train_only", stage.train_only)):
        for pattern in patterns:
            if not any(matches(name, [pattern]) for name in names):
                tops = {".".join(name.split(".")[:2]) for name in names}
                raise UserError(f"{option}: no parameter starts with {pattern!r}", fix=did_you_mean(pattern, tops))
    for name, parameter in model.named_parameters():
        is_chosen = not stage.train_only or matches(name, stage.train_only)
        parameter.requires_grad_(is_chosen and not matches(name, [*stage.freeze, *NEVER_TRAINED]))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is left to train", fix="take something out of `freeze`, or add it to `train_only`")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a parameter's name starts with one of the patterns, in which `*` stands for anything."""
    return any(fnmatchcase(name, f"{pattern}*") for pattern in patterns)


def set_train_mode(model: nn.Module, stage: StageConfig) -> None:
    """Put the model in training mode, batch norm excepted where its statistics are to stay."""
    model.train()
    if stage.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
