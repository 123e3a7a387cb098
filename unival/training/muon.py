"""AdamW whose matrices inside layers take orthogonalised momentum instead (Muon: K. Jordan and others, 2024).

On `unival-tiny` it needs about two thirds of AdamW's steps for the same loss (docs/experiments.md). `torch.optim.Muon`
iterates in bf16, which processors without bf16 units cannot do in useful time, and takes matrices one by one.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: fast growth of small singular values, none above 1.2
ITERATIONS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # root mean square of a typical update of Adam, so that both share a learning rate and a decay


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) with the same singular vectors and singular values of about 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x if wide else x.mT


class MuonAdamW(torch.optim.AdamW):
    """AdamW, with Muon for the groups that say `muon: True`; all their parameters are matrices."""

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
                    same_shape[matrix.shape].append((matrix, self._nesterov(matrix, grad), group))
        for shape, items in same_shape.items():
            updates = orthogonalise(torch.stack([update for _, update, _ in items]))
            for (matrix, _, group), update in zip(items, updates, strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * ADAM_RMS * max(shape) ** 0.5)
        return result

    def _nesterov(self, matrix: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient mixed with its running mean, which is brought up to date."""
        state = self.state[matrix]
        if "momentum" not in state:
            state |= {"momentum": torch.zeros_like(matrix), "step": torch.zeros(())}  # AdamW asks for a step
        state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp_(state["momentum"], MOMENTUM)
