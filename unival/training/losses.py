"""The losses of one update: of all groups of a step in one forward pass, normalised over passes and processes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from unival.batch import Batch
from unival.errors import UserError
from unival.model.modeling import UnivalForConditionalGeneration
from unival.objectives.base import Objective
from unival.training.distributed import World, gather_layers

Found = tuple[list[Tensor], list[float], list[dict[str, float]]]


class Losses(nn.Module):
    """What DDP and FSDP2 wrap: everything between their hooks happens in this one forward pass.

    Args:
        model: Trained.
        objective: Gives the loss of a batch.
        samples: The objective generates, so FSDP2 must have gathered all layers.
    """

    def __init__(self, model: UnivalForConditionalGeneration, objective: Objective, samples: bool = False) -> None:
        super().__init__()
        self.model, self.objective, self.samples = model, objective, samples

    def forward(self, batches: Sequence[Batch], update: int) -> Found:
        """Return values, sizes and logs of the losses of each batch (`unival.objectives.base.Loss`)."""
        if self.samples:
            gather_layers(self)
        losses = [self.objective(self.model, batch, update) for batch in batches]
        return [loss.value for loss in losses], [loss.size for loss in losses], [loss.logs for loss in losses]


def sizes_ahead(objective: Objective, parts: Sequence[Sequence[Batch]], update: int) -> list[float]:
    """Return the sum of the sizes of each group over the passes of this process, before any is computed.

    The gradient of a pass is scaled by what all passes have together, so that has to be known at the first one.

    Raises:
        UserError: If the objective does not know the size of a batch beforehand.
    """
    size: Any = getattr(objective, "size", None)
    totals = [0.0] * len(parts[0])
    for batches in parts:
        for index, batch in enumerate(batches):
            known = None if size is None else size(batch, update)
            if known is None:
                what = "this objective cannot weigh accumulated passes: it learns their size too late"
                raise UserError(what, fix="use `accumulation: 1`, or `normalise: sequence` where the objective has it")
            totals[index] += known
    return totals


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return what matrices are multiplied in, None for float32; `auto` is bf16 where the hardware has units for it."""
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"
        else:
            has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
            precision = "bf16" if "AMX" in torch.backends.cpu.get_cpu_capability() or has_amx else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


@contextmanager
def autocast(world: World, dtype: torch.dtype | None) -> Iterator[None]:
    """Multiply matrices in a shorter type while the block runs."""
    with torch.autocast(world.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        yield
