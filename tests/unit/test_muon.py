"""Orthogonalised momentum: singular values, the update written out, and a resumed optimizer."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch import Tensor, nn

from tests import ranks
from unival.errors import UserError
from unival.schema import OptimConfig
from unival.training.muon import ADAM_RMS, MOMENTUM, orthogonalise
from unival.training.optim import build_optimizer

CONFIG = OptimConfig(lr=0.01, weight_decay=0.1, muon=["layers"])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 6, bias=False)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


def updates(net: Net, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_singular_values_come_near_one_and_vectors_stay(rows: int, columns: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    count = min(rows, columns)
    values = torch.linspace(1.0, 0.1, count)  # tiny ones need more than five iterations
    matrix = scale * left[:, :count] @ torch.diag(values) @ right[:, :count].T
    inside = left[:, :count].T @ orthogonalise(matrix[None])[0] @ right[:, :count]
    found = inside.diagonal()
    assert ((found > 0.6) & (found < 1.3)).all()
    torch.testing.assert_close(inside - torch.diag(found), torch.zeros(count, count), atol=1e-3, rtol=0)


def test_an_update_is_the_formula_for_matrices_and_adamw_for_the_rest() -> None:
    torch.manual_seed(0)
    net = Net()
    before = deepcopy(net.state_dict())
    optimizer = build_optimizer(net, CONFIG)
    net(torch.randn(8, 6)).square().sum().backward()
    grads = {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}
    optimizer.step()
    for name, old in before.items():
        new, kept = net.state_dict()[name], old * (1 - CONFIG.lr * CONFIG.weight_decay)
        if name.startswith("layers") and old.ndim == 2:
            momentum = (1 - MOMENTUM) * grads[name]
            mixed = (1 - MOMENTUM) * grads[name] + MOMENTUM * momentum
            step = orthogonalise(mixed[None])[0] * ADAM_RMS * max(old.shape) ** 0.5
        else:
            step = grads[name].sign()  # the first update of Adam
        torch.testing.assert_close(new, kept - CONFIG.lr * step, atol=1e-5, rtol=1e-3)


def test_a_resumed_optimizer_goes_on_bit_for_bit() -> None:
    torch.manual_seed(1)
    whole = Net()
    half = deepcopy(whole)
    updates(whole, build_optimizer(whole, CONFIG), range(6))
    first = build_optimizer(half, CONFIG)
    updates(half, first, range(3))
    second = build_optimizer(half, CONFIG)
    second.load_state_dict(deepcopy(first.state_dict()))
    updates(half, second, range(3, 6))
    for (name, a), b in zip(whole.state_dict().items(), half.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_convolution_counts_as_the_matrix_of_its_kernels() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 5, 3, bias=False)
    net, kernels = nn.Sequential(convolution), convolution.weight
    before = kernels.detach().clone()
    optimizer = build_optimizer(net, OptimConfig(lr=0.01, weight_decay=0.0, muon=["0"]))
    net(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert kernels.grad is not None
    gradient = kernels.grad.clone()
    optimizer.step()
    mixed = ((1 - MOMENTUM) + MOMENTUM * (1 - MOMENTUM)) * gradient
    step = orthogonalise(mixed.reshape(1, 5, 27))[0] * ADAM_RMS * 27**0.5
    torch.testing.assert_close(kernels, before - 0.01 * step.reshape(5, 3, 3, 3), atol=1e-5, rtol=1e-3)


def trained_weights() -> dict[str, np.ndarray]:
    torch.manual_seed(2)
    net = Net()
    updates(net, build_optimizer(net, CONFIG), range(3))
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def test_processes_that_share_the_work_all_have_the_result_of_one() -> None:
    alone = trained_weights()
    for weights in ranks.run(trained_weights, 2):
        for name, values in alone.items():
            assert_allclose(weights[name], values, atol=1e-6, err_msg=name)


def test_a_pattern_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match=r"muon: no trainable parameter starts with 'layer\.'"):
        build_optimizer(Net(), OptimConfig(muon=["layer."]))
