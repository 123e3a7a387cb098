"""What Fisher and RegMean merging need to know of a model besides its weights, measured on data of its task.

* ``fisher``: per parameter, the mean over batches of the squared gradient of the loss: the diagonal of the empirical
  Fisher information (Matena and Raffel 2022, arXiv:2111.09832) where each batch is one sample and the loss its
  negative log-likelihood;
* ``gram``: per linear layer and convolution, the mean of x x^T over its inputs x (Jin et al. 2023, arXiv:2212.09849).

Means, not sums: models measured on different numbers of samples are then on one scale.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soups.engine.live import check_live
from soups.engine.output import WeightFiles, new_folder, plan_shards
from soups.errors import UserError
from soups.search.learn import Objective, checked_loss
from soups.sources.info import TensorInfo
from soups.state import Checkpoint

if TYPE_CHECKING:
    import torch

Kind = Literal["fisher", "gram"]


def load_weights(checkpoint: Checkpoint, model: torch.nn.Module, spec: str = "--loss") -> None:
    """Write the weights of a checkpoint into a model.

    Raises:
        UserError: the model has other tensors.
    """
    import torch

    live = model.state_dict()
    check_live(checkpoint.infos, live, spec)
    with torch.no_grad():
        for name, tensor in checkpoint.load().items():
            live[name].copy_(tensor)


def measure(
    objective: Objective, kind: Kind, spec: str = "--loss", limit: int | None = None
) -> dict[str, torch.Tensor]:
    """Return the statistics of the model of an objective, by the name of the parameter (float32, CPU).

    Args:
        objective: the model, its weights loaded; the data; the loss, which is called with the model itself.
        kind: ``fisher`` or ``gram``.
        spec: how the objective was named, for messages.
        limit: the first batches only.

    Raises:
        UserError: no batch, a loss that is no finite scalar, or for ``gram`` no layer that saw any input.
    """
    objective.model.eval()
    collected = _fisher(objective, spec, limit) if kind == "fisher" else _gram(objective, spec, limit)
    converted = {id(tensor): tensor.float().cpu() for tensor in collected.values()}  # tied names share theirs
    return {name: converted[id(tensor)] for name, tensor in collected.items()}


def _batches(objective: Objective, spec: str, limit: int | None) -> Iterator[Any]:
    count = 0
    for batch in objective.batches:
        if count == limit:
            return
        count += 1
        yield batch
    if not count:
        raise UserError("the objective has no batch", where=spec, fix="give at least one")


def _fisher(objective: Objective, spec: str, limit: int | None) -> dict[str, torch.Tensor]:
    import torch

    parameters = dict(objective.model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(parameter.is_floating_point())
    used = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    totals = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in used.items()}
    count = 0
    for batch in _batches(objective, spec, limit):
        loss = checked_loss(objective.loss(objective.model, batch), spec)
        if not loss.requires_grad:
            raise UserError("the loss does not depend on the weights", where=spec, fix="call the model in the loss")
        gradients = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
        for total, gradient in zip(totals.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.double().square()
        count += 1
    means = {name: total / count for name, total in totals.items()}
    return _by_stored_name(objective.model, means)


def _by_stored_name(model: torch.nn.Module, means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a value for every floating-point tensor of the state: tied names share theirs, buffers count alike."""
    import torch

    places = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            owner = places.get(tensor.data_ptr()) if tensor.numel() else name
            found[name] = means[owner] if owner in means else torch.ones_like(tensor)
    return found


def _gram(objective: Objective, spec: str, limit: int | None) -> dict[str, torch.Tensor]:
    import torch

    totals: dict[str, torch.Tensor] = {}
    rows: dict[str, int] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
            flat = _unfolded(layer, (inputs[0] if inputs else named["input"]).detach())
            product = (flat.t() @ flat).double()
            totals[name] = totals[name] + product if name in totals else product
            rows[name] = rows.get(name, 0) + len(flat)

        return hook

    layers = {name: layer for name, layer in objective.model.named_modules() if _is_linear(layer)}
    hooks = [
        layer.register_forward_pre_hook(watch(f"{name}.weight"), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            for batch in _batches(objective, spec, limit):
                objective.loss(objective.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not totals:
        raise UserError("no linear layer saw any input", where=spec, fix="call the model in the loss")
    state = objective.model.state_dict()
    owners: dict[int, str] = {}
    for name in totals:  # one weight in several layers has the inputs of all of them
        owner = owners.setdefault(state[name].data_ptr(), name)
        if owner != name:
            totals[owner] = totals[owner] + totals[name]
            rows[owner] += rows[name]
    places = {name: owners.get(tensor.data_ptr()) for name, tensor in state.items()}
    means = {owner: totals[owner] / rows[owner] for owner in owners.values()}
    return {name: means[owner] for name, owner in places.items() if owner is not None}


def _is_linear(layer: torch.nn.Module) -> bool:
    import torch

    is_convolution = isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d) and layer.groups == 1
    zeros = is_convolution and getattr(layer, "padding_mode", "") == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, torch.nn.Linear) or zeros


def _unfolded(layer: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs as rows (samples and positions, in): of a convolution, its patches."""
    import torch

    if isinstance(layer, torch.nn.Conv1d | torch.nn.Conv2d):
        assert not isinstance(layer.padding, str)
        num_axes = 4 if isinstance(layer, torch.nn.Conv2d) else 3
        inputs = inputs if inputs.ndim == num_axes else inputs.unsqueeze(0)  # one sample without a batch
        images = inputs if isinstance(layer, torch.nn.Conv2d) else inputs.unsqueeze(-2)
        numbers = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        size, dilation, padding, stride = (
            value if len(value) == 2 else (start, value[0]) for value, start in zip(numbers, (1, 1, 0, 1), strict=True)
        )
        patches = torch.nn.functional.unfold(images, size, dilation, padding, stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return inputs.reshape(-1, inputs.shape[-1])


def save(found: dict[str, torch.Tensor], model: Checkpoint, kind: Kind, out_dir: Path) -> int:
    """Write statistics as a checkpoint, a folder that appears complete or not at all; return how many tensors it has.

    Raises:
        UserError: names or sizes that do not belong to the model, or the disk is full.
    """
    import torch

    kept = {id(found[name]) for name in found if name in model.infos}
    # Of tied names files hold one.
    found = {name: value for name, value in found.items() if name in model.infos or id(value) not in kept}
    foreign = [name for name in found if name not in model.infos]
    if foreign:
        what = f"{len(foreign)} parameters are not in the checkpoint, such as {foreign[0]!r}"
        raise UserError(what, where=str(model.path), fix="return the model that this checkpoint is of")
    infos = {name: TensorInfo("F32", tuple(tensor.shape), out_dir) for name, tensor in found.items()}
    metadata = {"format": "pt", "soups": json.dumps({"statistic": kind, "sha256": model.digest})}
    with new_folder(out_dir) as folder, WeightFiles(folder, plan_shards(infos, metadata)) as files:
        for name, tensor in found.items():
            files.write(name, 0, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return len(found)
