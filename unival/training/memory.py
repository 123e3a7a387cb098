"""A warning before a run that will not fit its device; `unival plan` says more."""

import os

import torch
from torch import nn

from unival.errors import UserError
from unival.log import console
from unival.planning.cost import does_not_fit
from unival.schema import RunConfig
from unival.training.distributed import World
from unival.training.losses import autocast_dtype

BYTES = 16  # per parameter: float32 weights, gradients and two moments
SMALL = 0.01  # models whose states take less of the memory are not planned: it takes seconds


def warn_if_too_large(model: nn.Module, config: RunConfig, world: World) -> None:
    """Print a warning if the run needs more memory than the device has, as far as that can be planned."""
    available = device_bytes(world)
    states = BYTES * sum(parameter.numel() for parameter in model.parameters())
    if not world.is_main or states < SMALL * available:
        return
    is_short = autocast_dtype(config.precision, world.device) is not None
    config = config.model_copy(update={"precision": "bf16" if is_short else "fp32"})  # what `auto` is here
    try:
        with torch.random.fork_rng(devices=[]):
            problem = does_not_fit(config, world.size, world.kind, available)
    except UserError:  # what is wrong with the configuration is said where it is used
        return
    if problem is not None:
        console.print(f"[yellow]this run will probably not fit: {problem}[/]")


def device_bytes(world: World) -> int:
    """Return the memory of the GPU, or this process's share of the machine's."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
