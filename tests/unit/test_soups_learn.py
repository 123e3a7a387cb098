"""Gradients of learned coefficients are those of the loss of the merged weights, statistics of norms included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from soups.errors import UserError
from soups.search.learn import MergedModel, Objective, learn
from soups.state import open_checkpoint

BATCH = torch.linspace(-1, 2, 24, dtype=torch.float64).reshape(4, 2, 3)


class Masked(nn.Module):
    """A network of every norm with statistics, and a mask that is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.norms = nn.Sequential(
            nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False), nn.InstanceNorm1d(2, track_running_stats=True)
        )
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.norms(self.mix(values)) @ self.mask.softmax(dim=1)


def ends(folder: Path) -> list:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = Masked().double()
        for _ in range(5):
            model(torch.randn(8, 2, 3, dtype=torch.float64) * (seed + 1) + seed)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return [open_checkpoint(folder / f"{name}.safetensors") for name in "ab"]


@pytest.mark.parametrize("per", ["model", "module", "tensor"])
def test_the_gradient_is_that_of_finite_differences(tmp_path, per):
    soup = MergedModel(ends(tmp_path), Masked().double(), per, "first", "loss")

    def loss(coefficients: torch.Tensor) -> torch.Tensor:
        return soup.caller(coefficients)(BATCH).square().mean()

    generator = torch.Generator().manual_seed(0)
    coefficients = torch.rand(len(soup.groups), 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, [coefficients])


def test_norms_with_a_gradient_are_those_of_torch(tmp_path):
    soup = MergedModel(ends(tmp_path), Masked().double(), "model", "first", "loss")
    even = torch.full((1, 2), 0.5, dtype=torch.float64)
    fused = soup.caller(even)(BATCH)
    torch.testing.assert_close(soup.caller(even.requires_grad_())(BATCH), fused, rtol=1e-12, atol=1e-12)


def test_batches_that_end_and_losses_without_the_merged_model_are_a_persons_mistake(tmp_path):
    checkpoints, model = ends(tmp_path), Masked().double()
    once = Objective(model, iter([BATCH]), lambda call, batch: call(batch).square().mean())
    with pytest.raises(UserError, match="no batch") as error:
        learn(checkpoints, once, integers="first")
    assert error.value.fix == "batches must be iterable more than once"
    ignoring = Objective(model, [BATCH], lambda call, batch: model(batch).square().mean())
    with pytest.raises(UserError, match="does not depend on the coefficients"):
        learn(checkpoints, ignoring, integers="first")


def test_a_mask_of_infinities_is_no_loss_of_nan(tmp_path):
    objective = Objective(Masked().double(), [BATCH], lambda call, batch: call(batch).square().mean())
    losses = learn(ends(tmp_path), objective, epochs=20, lr=0.3, integers="first").losses
    assert losses["learned"] <= min(losses.values()) + 1e-6
