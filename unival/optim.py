"""AdamW as in the original (decay on every parameter) and schedules over the steps of a stage (specification 5)."""

import math

import torch
from torch import nn

from unival.errors import UserError, did_you_mean
from unival.schema import OptimConfig, StageConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters,
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
    """Mark as not trainable what the stage freezes, and only that.

    Raises:
        UserError: If a prefix matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in stage.freeze:
        if not any(name.startswith(prefix) for name in names):
            tops = {".".join(name.split(".")[:2]) for name in names}
            raise UserError(f"freeze: no parameter starts with {prefix!r}", fix=did_you_mean(prefix, tops))
    for name, parameter in model.named_parameters():
        fixed = name.endswith("melW") or any(name.startswith(prefix) for prefix in stage.freeze)
        parameter.requires_grad_(not fixed)


def set_train_mode(model: nn.Module, stage: StageConfig) -> None:
    """Put the model in training mode, batch norm excepted where its statistics are to stay."""
    model.train()
    if stage.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
