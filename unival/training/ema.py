"""Exponential moving average of a model's weights and statistics (specification 9.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from unival.model.modeling import UnivalForConditionalGeneration
from unival.schema import EmaConfig
from unival.training.distributed import copy_full, local


class Ema:
    """`average = decay * average + (1 - decay) * weight` for every floating-point entry of the state dict, in float32.

    Statistics of batch norms are averaged too, integers copied; tied weights count once. Under FSDP2 each process
    averages its part.

    Attributes:
        tensors: The averages by name.
    """

    def __init__(
        self, model: UnivalForConditionalGeneration, config: EmaConfig, values: Mapping[str, Tensor] | None = None
    ) -> None:
        """Start from the model's weights; `values` are whole averages that replace those of the same name."""
        self.config = config
        self.tensors = {name: tensor.detach().clone() for name, tensor in untied(model).items()}
        copy_full(self.tensors, values or {})

    @torch.no_grad()
    def update(self, model: UnivalForConditionalGeneration, updates: int) -> None:
        """Take in the weights after an update; `updates` is how many there were before it."""
        decay = self.config.decay if updates >= self.config.start else 0.0
        averages, weights = [], []
        for name, tensor in untied(model).items():
            if tensor.is_floating_point():
                averages.append(local(self.tensors[name]))
                weights.append(local(tensor.detach()).float())
            else:
                local(self.tensors[name]).copy_(local(tensor))
        torch._foreach_mul_(averages, decay)  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_(averages, weights, alpha=1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]


def untied(model: UnivalForConditionalGeneration) -> dict[str, Tensor]:
    """Return the state dict with each tied tensor once."""
    return {name: tensor for name, tensor in model.state_dict().items() if name not in model._tied_weights_keys}
