"""Processes of one run: who they are, what they agree on, and how they share a model (DDP or FSDP2).

`torchrun` starts them and sets RANK, LOCAL_RANK and WORLD_SIZE; without it a run has one process and nothing here
communicates.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from unival.device import find_device
from unival.errors import UserError
from unival.schema import ParallelConfig

T = TypeVar("T")
_WRAPPED: WeakSet[DistributedDataParallel] = WeakSet()


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as seen by one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kind: Literal["none", "ddp", "fsdp"] = "none"

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes logs and whole models."""
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return sums over all processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: T) -> list[T]:
        """Return what each process gave, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, action: Callable[[], T]) -> T:
        """Run something in the main process only; all get its result, or raise what it raised."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:  # raised below, in every process
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def first_problem(self, problem: str | None) -> str | None:
        """Return the problem of any process, so that all give up together."""
        return next((found for found in self.gather(problem) if found is not None), None)


@contextmanager
def join(config: ParallelConfig, device: str) -> Iterator[World]:
    """Join the other processes of the run, and leave them at the end.

    Raises:
        UserError: If there is no such device, or the kind does not go with the number of processes.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = find_device(device)
    if config.kind == "none" and size > 1:
        what = f"parallel.kind is none, but torchrun started {size} processes"
        raise UserError(what, fix="parallel.kind=ddp or parallel.kind=fsdp")
    if config.kind == "fsdp" and "RANK" not in os.environ:
        raise UserError("parallel.kind is fsdp, but torchrun started no processes", fix="torchrun ... -m unival.train")
    use_gpu = place.type == "cuda"
    if use_gpu:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if size == 1 and config.kind != "fsdp":
        yield World(device=place)
        return
    # gloo carries what is on the CPU (counts, messages), nccl what is on the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo")
    try:
        yield World(rank, size, place, "fsdp" if config.kind == "fsdp" else "ddp")
    finally:
        release_reducers()
        dist.destroy_process_group()


def release_reducers() -> None:
    """Free what averages gradients while the group of processes still exists.

    The traceback of an interruption keeps the wrapped model. Freed after the group, the reducer would end it in turn,
    and wait for a thread of gloo without giving up the interpreter's lock, for which that thread may be waiting.
    """
    for module in _WRAPPED:
        vars(module).pop("logger", None)  # has a reference to the reducer
        vars(module).pop("reducer", None)
    _WRAPPED.clear()


def wrap(module: nn.Module, layers: Sequence[nn.Module], world: World, config: ParallelConfig) -> nn.Module:
    """Return a module whose backward pass averages gradients over processes; FSDP2 changes it in place.

    All processes start from the main one's parameters and buffers.

    Args:
        module: Its forward pass must compute all losses of a step: parameters outside of `layers` are gathered for the
            whole of it.
        layers: Inner modules that FSDP2 gathers one at a time.
        world, config: How.
    """
    if world.kind == "none":
        return module
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, 0)
    if world.kind == "ddp":
        # Without broadcasts of buffers: `average_statistics` lets every process count instead of the first one.
        wrapped = DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=config.find_unused)
        _WRAPPED.add(wrapped)
        return wrapped
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=config.reshard)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


def sync_gradients(module: nn.Module, is_last: bool) -> None:
    """Exchange gradients in the next backward pass only if it is the last one of the update."""
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = is_last
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)


def gather_layers(module: nn.Module) -> None:
    """Gather every part of an FSDP2 module, for code that calls layers a different number of times per process."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.unshard()


def average_statistics(model: nn.Module, world: World) -> None:
    """Average the running statistics of batch norms that are trained over all processes."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    tensors = [cast(Tensor, t) for norm in norms for t in (norm.running_mean, norm.running_var)]
    if world.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world.size).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(tensors: Mapping[str, Tensor], world: World, everywhere: bool = False) -> dict[str, Tensor]:
    """Return whole tensors on the CPU in the main process, one gathered at a time; all processes must call it.

    Args:
        tensors: Of a model or its average. What is whole and on the CPU already is not copied.
        world: Of the run.
        everywhere: All processes get them.
    """
    found = {}
    for name, tensor in tensors.items():
        whole = full(tensor.detach())
        if world.is_main or everywhere:
            found[name] = whole.cpu()
    return found


@torch.no_grad()
def copy_full(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write whole tensors into those of the same name, of which a process may hold a part."""
    for name, tensor in tensors.items():
        if name in values:
            value = values[name].to(tensor.device, tensor.dtype)
            if isinstance(tensor, DTensor):
                value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
            local(tensor).copy_(value)
