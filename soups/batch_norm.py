"""Batch-norm statistics: which tensors they are, and how to recompute them for merged weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.errors import UserError
from soups.evaluator import check_args, import_function
from soups.sources.info import DTYPES, TensorInfo
from soups.state import open_checkpoint

if TYPE_CHECKING:
    import torch


def is_statistic(name: str) -> bool:
    """Say whether a tensor is a running mean or variance, by the name that PyTorch gives it."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def is_counter(name: str) -> bool:
    """Say whether a tensor counts the batches that a running mean and variance saw."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def recomputed(
    checkpoint_path: Path, spec: str, args: Mapping[str, Any], wanted: Mapping[str, TensorInfo]
) -> dict[str, torch.Tensor]:
    """Load a merged checkpoint through a function of the user and return its statistics after a pass over data.

    Args:
        checkpoint_path: the merged checkpoint.
        spec: ``module:function``, called as ``function(checkpoint_path, **args)``; it returns the model, into
            which the merged weights are written here, and an iterable of batches.
        args: arguments of the function.
        wanted: the statistics of the checkpoint, by name.

    Raises:
        UserError: the function does not resolve, or its model has other statistics than the checkpoint.
    """
    import torch

    function = import_function(spec, "policies: recompute")
    check_args(spec, function, args)
    model, batches = function(checkpoint_path, **args)
    checkpoint, state = open_checkpoint(checkpoint_path), model.state_dict()
    problems = [f"{name} {info}" for name, info in wanted.items() if name not in state]
    stored = {name: info for name, info in checkpoint.infos.items() if name in state}
    problems += [f"{name} {info}" for name, info in stored.items() if tuple(state[name].shape) != info.shape]
    if problems:
        raise UserError(
            f"the model lacks these tensors, or has them in another shape: {', '.join(problems)}",
            where=spec,
            fix="load the same model",
        )
    model.load_state_dict(checkpoint.load(), strict=False)
    recompute(model, batches)
    state = model.state_dict()
    dtypes = {name: getattr(torch, DTYPES[info.dtype][0]) for name, info in wanted.items()}
    return {name: state[name].detach().cpu().to(dtype) for name, dtype in dtypes.items()}


def recompute(model: torch.nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every batch norm by those of the given batches; return how many there were.

    Each batch has the same weight, so that their order does not matter. Only the batch norms are in training
    mode: dropout stays off. Modes are restored.

    Args:
        model: any module.
        batches: a tensor is the only argument of the model, a list or tuple its arguments, a mapping its named ones.

    Raises:
        UserError: no batch norm, or no batches.
    """
    import torch

    kinds = (torch.nn.modules.batchnorm._NormBase,)
    norms = [module for module in model.modules() if isinstance(module, kinds) and module.running_mean is not None]
    if not norms:
        raise UserError("the model has no batch norm with statistics", where="recompute", fix="remove the policy")
    modes = {module: module.training for module in model.modules()}
    momenta = {module: module.momentum for module in norms}
    model.eval()
    count = 0
    try:
        for module in norms:
            module.reset_running_stats()
            module.momentum = None  # cumulative: the mean over batches
            module.train()
        with torch.no_grad():
            for batch in batches:
                _call(model, batch)
                count += 1
    finally:
        for module, momentum in momenta.items():
            module.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if count == 0:
        raise UserError("no batches to recompute the statistics from", where="recompute", fix="give at least one")
    return count


def _call(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, list | tuple):
        model(*batch)
    else:
        model(batch)
