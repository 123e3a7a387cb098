"""Learned soup: coefficients by gradient descent on a loss of the merged weights.

The loss is differentiated through ``theta = sum_i c_i theta_i`` (Wortsman et al. 2022, arXiv:2203.05482, learned
soup), with the model called on the merged tensors by ``torch.func.functional_call``. Coefficients are softmaxes,
so that they stay on the simplex: one for the whole model, or one per module or tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from soups.engine.live import aliases, check_live
from soups.errors import UserError
from soups.evaluator import check_args, import_function
from soups.merge import Recipe, merge
from soups.methods import get_method
from soups.modules import module_of
from soups.recipes.coefficients import Rule
from soups.recipes.compute import compute_into
from soups.state import Checkpoint, check_compatible

if TYPE_CHECKING:
    import torch

Per = Literal["model", "module", "tensor"]
WHOLE = "all"  # the one group of ``per="model"``


@dataclass(frozen=True)
class Objective:
    """What learned coefficients minimise.

    Attributes:
        model: the module; it stays in evaluation mode.
        batches: read again at each epoch; held-out data, not those the models were trained on.
        loss: ``loss(call, batch)`` returns a scalar tensor, where ``call(*args, **kwargs)`` runs the model with
            the merged weights.
    """

    model: torch.nn.Module
    batches: Iterable[Any]
    loss: Callable[[Callable[..., Any], Any], torch.Tensor]


@dataclass(frozen=True)
class Learned:
    """The result: coefficients by group and model, and mean losses before and after.

    ``tied`` are the stored names that are another tensor in the model, whose coefficients they have.
    """

    per: Per
    coefficients: dict[str, dict[str, float]]
    history: list[float]
    losses: dict[str, float]
    tied: dict[str, str] = field(default_factory=dict)

    def weights_of(self, name: str) -> dict[str, float]:
        """Return the coefficients of one tensor."""
        return self.coefficients[group_of(self.tied.get(name, name), self.per)]


def group_of(name: str, per: Per) -> str:
    """Return the group whose coefficients a tensor has."""
    return {"model": WHOLE, "module": module_of(name), "tensor": name}[per]


def load_objective(spec: str, checkpoint_path: Path, args: Mapping[str, Any]) -> Objective:
    """Import ``module:function`` and call it with the first checkpoint and the arguments.

    Raises:
        UserError: it does not resolve, or does not return an `Objective`.
    """
    function = import_function(spec, "--loss")
    check_args(spec, function, args)
    objective = function(checkpoint_path, **args)
    if not isinstance(objective, Objective):
        raise UserError(
            f"{spec} returned {type(objective).__name__}",
            where="--loss",
            fix="return soups.search.learn.Objective(model, batches, loss)",
        )
    return objective


class MergedModel:
    """Calls a model with weights that are a differentiable mixture of the checkpoints."""

    def __init__(
        self, checkpoints: Sequence[Checkpoint], model: torch.nn.Module, per: Per, integers: str, spec: str
    ) -> None:
        import torch

        check_compatible(checkpoints)
        live = model.state_dict()
        infos = checkpoints[0].infos
        check_live(infos, live, spec)
        self._model = model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        states = [checkpoint.load() for checkpoint in checkpoints]
        self._fixed = _integers(checkpoints, states, live, integers)
        stored = [[name for name in names if name in infos] for names in aliases(live)]
        self.tied = {name: names[0] for names in stored for name in names[1:]}  # torch ties them by itself
        self._tensors = {
            name: [state[name].to(live[name]) for state in states]
            for name, info in infos.items()
            if info.is_float and name not in self.tied
        }
        self.groups = sorted({group_of(name, per) for name in self._tensors})
        self._group = {name: self.groups.index(group_of(name, per)) for name in self._tensors}
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._buffers = self._group.keys() - parameters
        for name in sorted(self._buffers):  # masks, for one: their infinities times 0 would be NaNs
            if all(self._tensors[name][0].equal(other) for other in self._tensors[name][1:]):
                self._fixed[name] = self._tensors.pop(name)[0]
        self.logits = torch.zeros(len(self.groups), len(checkpoints), requires_grad=True)

    def caller(self, coefficients: torch.Tensor) -> Callable[..., Any]:
        """Return what runs the model with coefficients (groups, models)."""
        import torch

        from soups.search.norms import DifferentiableNorms

        merged = dict(self._fixed)
        for name, tensors in self._tensors.items():
            row = coefficients[self._group[name]].to(tensors[0])
            merged[name] = sum((row[i] * tensor for i, tensor in enumerate(tensors[1:], 1)), row[0] * tensors[0])

        def call(*args: Any, **kwargs: Any) -> Any:
            with DifferentiableNorms() if self._buffers else nullcontext():
                return torch.func.functional_call(self._model, merged, args, kwargs)

        return call


def _integers(
    checkpoints: Sequence[Checkpoint],
    states: Sequence[Mapping[str, torch.Tensor]],
    live: Mapping[str, torch.Tensor],
    policy: str,
) -> dict[str, torch.Tensor]:
    """Return the integer and boolean tensors of the soup, on the devices of the live ones."""
    import torch

    method, digests = get_method("linear"), [checkpoint.digest for checkpoint in checkpoints]
    recipe = Recipe(checkpoints, [1 / len(checkpoints)] * len(checkpoints), method, None, policy)
    found: dict[str, torch.Tensor] = {}
    for name, action in recipe.actions.items():
        if not action.info.is_float:
            found[name] = torch.empty_like(live[name])
            compute_into(found[name], name, action, [state.__getitem__ for state in states], None, method, digests)
    return found


def learn(
    checkpoints: Sequence[Checkpoint],
    objective: Objective,
    *,
    per: Per = "model",
    epochs: int = 5,
    lr: float = 0.05,
    integers: str = "error",
    spec: str = "--loss",
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Learned:
    """Return the coefficients found by AdamW, from equal ones.

    Args:
        checkpoints: the models; all are held in memory.
        objective: the model, the data and the loss.
        per: what has coefficients of its own.
        epochs: passes over the batches.
        lr: learning rate of the logits.
        integers: policy for integer tensors that differ.
        spec: how the objective was named, for messages.
        on_epoch: called with the number of epochs done and their mean loss.

    Raises:
        UserError: the models do not match, there is no batch, or the loss is no finite scalar that depends on the
            coefficients.
    """
    import torch

    if not (isfinite(lr) and lr > 0):
        raise UserError(f"the learning rate is {lr:g}", where="--lr", fix="give a number above 0")
    names = [checkpoint.name for checkpoint in checkpoints]
    soup = MergedModel(checkpoints, objective.model, per, integers, spec)
    optimizer = torch.optim.AdamW([soup.logits], lr=lr, weight_decay=0.0)
    even = torch.full((len(soup.groups), len(names)), 1 / len(names))
    losses = {"equal": _mean_loss(objective, soup.caller(even), spec)}
    history: list[float] = []
    for epoch in range(epochs):
        total: list[float] = []
        for batch in objective.batches:
            loss = checked_loss(objective.loss(soup.caller(soup.logits.softmax(dim=1)), batch), spec)
            if not loss.requires_grad:
                fix = "compute it with call(...), which runs the model with the merged weights, and no torch.no_grad()"
                raise UserError("the loss does not depend on the coefficients", where=spec, fix=fix)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total.append(float(loss.detach()))
        history.append(_mean(total, spec))
        on_epoch(epoch + 1, history[-1])
    learned = soup.logits.detach().softmax(dim=1)
    losses["learned"] = _mean_loss(objective, soup.caller(learned), spec)
    for index, name in enumerate(names):
        alone = torch.zeros_like(learned)
        alone[:, index] = 1.0
        losses[name] = _mean_loss(objective, soup.caller(alone), spec)
    rows = learned.double()
    rows = (rows / rows.sum(dim=1, keepdim=True)).tolist()
    coefficients = {group: dict(zip(names, row, strict=True)) for group, row in zip(soup.groups, rows, strict=True)}
    return Learned(per, coefficients, history, losses, soup.tied)


def _mean_loss(objective: Objective, call: Callable[..., Any], spec: str) -> float:
    import torch

    with torch.no_grad():
        losses = [float(checked_loss(objective.loss(call, batch), spec)) for batch in objective.batches]
    return _mean(losses, spec)


def _mean(losses: Sequence[float], spec: str) -> float:
    if not losses:
        raise UserError("the objective has no batch", where=spec, fix="batches must be iterable more than once")
    return sum(losses) / len(losses)


def checked_loss(loss: Any, spec: str) -> torch.Tensor:
    """Require a finite scalar."""
    import torch

    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise UserError("the loss is not a scalar tensor", where=spec, fix="return a mean over the batch")
    if not torch.isfinite(loss):
        raise UserError(f"the loss is {float(loss.detach())}", where=spec, fix="lower --lr, or check the data")
    return loss


def save_learned(checkpoints: Sequence[Checkpoint], learned: Learned, integers: str, out_dir: Path) -> None:
    """Write the soup with the learned coefficients."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for name, info in checkpoints[0].infos.items():
        if info.is_float:
            groups.setdefault(tuple(learned.weights_of(name).values()), []).append(re.escape(name))
    rules = [Rule("|".join(names), tuple((weight,) for weight in weights)) for weights, names in groups.items()]
    merge(Recipe(checkpoints, next(iter(groups)), get_method("linear"), None, integers, rules[1:]), out_dir)
