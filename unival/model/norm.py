"""Batch norm that never changes (the original's `freeze-resnet`, specification 2.10), and one that needs no memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from unival.model.linear import is_watched


class FrozenBatchNorm(nn.Module):
    """Batch norm in evaluation mode for ever, in two or three dimensions; all four vectors are buffers.

    torchvision has this for images only. A state dict of an ordinary batch norm loads: its batch counter is left out.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the identity."""
        init.ones_(self.weight)
        init.zeros_(self.bias)
        init.zeros_(self.running_mean)
        init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, ...)."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm inside `module` by a frozen one with the same name and values."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            frozen = FrozenBatchNorm(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


class InPlace(nn.Module):
    """In prediction on a CPU, write the result over the input.

    There a new large tensor costs ten times the arithmetic of a fixed batch norm. Only for norms whose input nobody
    else reads, such as the output of a convolution; with a forward hook on a module beside it somebody may.
    """

    eps: float
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    beside: list[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, ...)."""
        if self.training or is_watched() or x.device.type != "cpu" or x.dtype != self.weight.dtype:
            return super().forward(x)
        if any(module._forward_hooks for module in self.beside):
            return super().forward(x)
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape), out=x)


class InPlaceBatchNorm2d(InPlace, nn.BatchNorm2d):
    """See `InPlace`."""


class InPlaceBatchNorm3d(InPlace, nn.BatchNorm3d):
    """See `InPlace`."""


class InPlaceFrozenBatchNorm(InPlace, FrozenBatchNorm):
    """See `InPlace`."""


def normalise_in_place(module: nn.Module) -> None:
    """Let every batch norm inside `module` work in place where it can; names and values stay."""
    kinds: dict[type, type] = {
        nn.BatchNorm2d: InPlaceBatchNorm2d,
        nn.BatchNorm3d: InPlaceBatchNorm3d,
        FrozenBatchNorm: InPlaceFrozenBatchNorm,
    }
    inside = [(parent, child) for parent in module.modules() for child in parent.children()]
    for parent, child in [(module, module), *inside]:
        if type(child) in kinds:
            child.__class__ = kinds[type(child)]  # the same module with another forward pass
            vars(child)["beside"] = list(parent.modules())  # not as its sub-modules
