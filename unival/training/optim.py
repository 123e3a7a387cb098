"""AdamW as in the original (decay on every parameter) and schedules over the steps of a stage (specification 5)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from unival.errors import UserError, did_you_mean
from unival.schema import OptimConfig, StageConfig
from unival.training.distributed import full, local
from unival.training.muon import MuonAdamW

# Tables that are fixed in the original, and a classifier that is stored but not used.
NEVER_TRAINED = ("*.melW", "*.spectrogram_extractor.", "encoder.embed_images.fc.")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters, one group per `lr_scale` (kept in the group as `scale`) and kind.

    Raises:
        UserError: If a key of `lr_scale` or a pattern of `muon` matches no trainable parameter, or Muon meets shards.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for key, patterns in (("lr_scale", config.lr_scale), ("muon", config.muon)):
        for pattern in patterns:
            if not any(matches(name, [pattern]) for name in trained):
                what = f"{key}: no trainable parameter starts with {pattern!r}"
                raise UserError(what, fix=did_you_mean(pattern, tops(trained)))
            named = {name: p for name, p in model.named_parameters() if matches(name, [pattern])}  # frozen ones too
            first = next(iter(named))
            if key == "muon" and all(parameter.ndim < 2 for parameter in named.values()):
                what = f"muon: {pattern!r} names vectors only, such as {first}"
                raise UserError(what, fix="Muon is for matrices and kernels; name some, or leave it out")
            if key == "lr_scale" and all(first_match(name, config.lr_scale) != pattern for name in named):
                what = f"lr_scale: {pattern!r} never counts: {first_match(first, config.lr_scale)!r} comes first"
                raise UserError(what, fix="write the longer beginning first")
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for pattern in [*config.lr_scale, ""]:
        groups |= {(pattern, False): [], (pattern, True): []}
    for name, parameter in trained.items():
        scale = first_match(name, config.lr_scale)
        groups[scale, parameter.ndim >= 2 and matches(name, config.muon)].append(parameter)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "fused": True}
    options["weight_decay"] = config.weight_decay
    parts = [
        {"params": group, "scale": config.lr_scale.get(pattern, 1.0), "muon": muon}
        for (pattern, muon), group in groups.items()
        if group
    ]
    if not config.muon:
        return torch.optim.AdamW(parts, **options)
    if any(isinstance(parameter, DTensor) for parameter in trained.values()):
        raise UserError("Muon needs whole matrices", where="optim.muon", fix="use parallel.kind=ddp, or optim.muon=[]")
    return MuonAdamW(parts, **options)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of update `step` (0-based) of `num_steps`.

    Linear warm-up over `int(num_steps * warmup_ratio)` or `warmup_steps` updates, then the schedule, which reaches zero
    at `num_steps`, or at `schedule_steps` where the stage stops before.
    """
    num_steps = max(config.schedule_steps or 0, num_steps)
    warmup = int(num_steps * config.warmup_ratio) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr * (1.0 - done)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, scale: float = 1.0) -> float:
    """Divide gradients by the scale of the loss, then clip their global L2 norm; under FSDP2 that of all processes.

    Returns:
        The norm before clipping; not finite when a gradient overflowed.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    if scale != 1.0:
        gradients = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, 1.0 / scale)  # pyright: ignore[reportPrivateImportUsage]
    return full(torch.nn.utils.clip_grad_norm_(parameters, max_norm)).item()


@dataclass(slots=True)
class LossScale:
    """Dynamic scale of the loss, so that small gradients do not vanish in fp16 (specification 5).

    `torch.amp.GradScaler` looks for overflows in the gradients of its process, under FSDP2 a part of them. The global
    norm tells all processes the same.

    Attributes:
        value: What the loss is multiplied with; 1 is no scaling.
        window: Finite updates in a row after which it doubles; 0 keeps it.
        finite: How many there were since it changed.
    """

    value: float = 1.0
    window: int = 0
    finite: int = 0

    def update(self, is_finite: bool) -> None:
        """Take note of an update.

        Raises:
            FloatingPointError: If no scale is small enough.
        """
        if not is_finite:
            self.value, self.finite = self.value / 2, 0
            if self.window == 0 or self.value < 2**-14:
                raise FloatingPointError("the gradient norm is not finite")
            return
        self.finite += 1
        if self.finite == self.window:
            self.value, self.finite = self.value * 2, 0


def freeze(model: nn.Module, stage: StageConfig) -> None:
    """Mark as trainable what the stage trains, and only that.

    Raises:
        UserError: If an entry of `freeze` or `train_only` matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for option, patterns in (("freeze", stage.freeze), ("train_only", stage.train_only)):
        for pattern in patterns:
            if not any(matches(name, [pattern]) for name in names):
                what = f"{option}: no parameter starts with {pattern!r}"
                raise UserError(what, fix=did_you_mean(pattern, tops(names)))
    for name, parameter in model.named_parameters():
        is_chosen = not stage.train_only or matches(name, stage.train_only)
        parameter.requires_grad_(is_chosen and not matches(name, [*stage.freeze, *NEVER_TRAINED]))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("nothing is left to train", fix="take something out of `freeze`, or add it to `train_only`")


def tops(names: Iterable[str]) -> set[str]:
    """Return the beginnings of parameter names that patterns mostly are: `encoder`, `encoder.embed_images`."""
    return {".".join(name.split(".")[:length]) for name in names for length in (1, 2)}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a parameter's name starts with one of the patterns, in which `*` stands for anything."""
    return any(fnmatchcase(name, f"{pattern}*") for pattern in patterns)


def first_match(name: str, patterns: Iterable[str]) -> str:
    """Return the first pattern that a parameter's name starts with, or nothing."""
    return next((pattern for pattern in patterns if matches(name, [pattern])), "")


def set_train_mode(model: nn.Module, stage: StageConfig) -> None:
    """Put the model in training mode, batch norm excepted where its statistics are to stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(not stage.freeze_batchnorm)
