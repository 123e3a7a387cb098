"""A linear map of few rows and a large matrix is computed the other way around, with the same result."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unival.model import linear
from unival.model.linear import Linear


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Make every matrix a large one, and list the shapes that went the usual way."""
    usual: list[tuple[int, ...]] = []

    def look(input: Tensor, *args: Any) -> Tensor:
        usual.append(tuple(input.shape))
        return original(input, *args)

    original = F.linear
    monkeypatch.setattr(linear, "LARGE", 1)
    monkeypatch.setattr(F, "linear", look)
    return usual


@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (linear.FEW_ROWS, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_few_rows_give_the_same(thin: list[tuple[int, ...]], shape: tuple[int, ...], has_bias: bool) -> None:
    layer, x = Linear(5, 9, bias=has_bias).double(), torch.randn(shape).double()
    with torch.inference_mode():
        found = layer(x)
    assert not thin
    assert found.is_contiguous()
    expected = x @ layer.weight.T + (layer.bias if has_bias else 0.0)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-14)


def test_all_else_goes_the_usual_way(thin: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, many = Linear(5, 9), torch.randn(linear.FEW_ROWS + 1, 5)
    layer(many[:2]).sum().backward()  # gradients are wanted
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(many)
        layer(many[:0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(many[:2]).dtype is torch.bfloat16
        monkeypatch.setattr(linear, "LARGE", 46)
        layer(many[:2])
    assert [shape[0] for shape in thin] == [2, linear.FEW_ROWS + 1, 0, 2, 2]
