"""AdamW whose matrices inside layers take orthogonalised momentum instead (Muon: K. Jordan and others, 2024).

On `unival-tiny` it needs about two thirds of AdamW's steps for the same loss (docs/experiments.md). `torch.optim.Muon`
iterates in bf16, which processors without bf16 units cannot do in useful time, and takes matrices one by one. A
convolution counts as the matrix (outputs, inputs x kernel).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: fast growth of small singular values, none above 1.2
ITERATIONS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # root mean square of a typical update of Adam, so that both share a learning rate and a decay


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) with the same singular vectors and singular values of about 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    flat = matrices.shape[1] <= matrices.shape[2]
    x = matrices if flat else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] < 2 * x.shape[1]:
        for _ in range(ITERATIONS):
            gram = x @ x.mT
            x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    else:  # All steps are polynomials of one Gram matrix: multiply those, which are small, and the long rows once.
        gram = x @ x.mT
        identity = product = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        for _ in range(ITERATIONS):
            factor = a * identity + torch.baddbmm(b * gram, gram, gram, alpha=c)
            product, gram = factor @ product, factor @ gram @ factor
        x = product @ x
    return x if flat else x.mT


def by_all_processes(function: Callable[[Tensor], Tensor], tensors: Tensor) -> Tensor:
    """Return `function(tensors)`, of which every process computes some rows of the first axis; all have `tensors`."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        return function(tensors)
    size = -(-len(tensors) // world)
    first = min(dist.get_rank() * size, len(tensors))
    mine = tensors.new_zeros(size, *tensors.shape[1:])
    own = tensors[first : first + size]
    if len(own):
        mine[: len(own)] = function(own)
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine)
    return torch.cat(parts)[: len(tensors)]


class MuonAdamW(torch.optim.AdamW):
    """AdamW, with Muon for the groups that say `muon: True`; all their parameters have two axes or more."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update; gradients of matrices are overwritten."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            result = super().step(closure)
        finally:
            self.param_groups = groups
        same_shape = defaultdict[torch.Size, list[tuple[Tensor, Tensor, dict[str, Any]]]](list)
        for group in groups:
            for matrix in group["params"]:
                if group["muon"] and (grad := matrix.grad) is not None:
                    update = self._nesterov(matrix, grad).flatten(1)
                    same_shape[update.shape].append((matrix, update, group))
        for shape, items in same_shape.items():
            updates = by_all_processes(orthogonalise, torch.stack([update for _, update, _ in items]))
            for (matrix, _, group), update in zip(items, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update.view_as(matrix), alpha=-group["lr"] * ADAM_RMS * max(shape) ** 0.5)
        return result

    def _nesterov(self, matrix: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient mixed with its running mean, which is brought up to date."""
        state = self.state[matrix]
        if "momentum" not in state:
            state |= {"momentum": torch.zeros_like(matrix), "step": torch.zeros(())}  # AdamW asks for a step
        state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp_(state["momentum"], MOMENTUM)
