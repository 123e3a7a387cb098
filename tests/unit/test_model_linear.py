"""A linear map with a large matrix is computed by another library, with the same result."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from unival.model import linear
from unival.model.linear import Linear

pytestmark = pytest.mark.skipif(linear._product is None, reason="this torch is built without oneDNN")


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


@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (1000, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_gives_the_same(thin: list[tuple[int, ...]], shape: tuple[int, ...], has_bias: bool) -> None:
    layer, x = Linear(5, 9, bias=has_bias), torch.randn(shape)
    with torch.inference_mode():
        found = [layer(x), layer(x.flip(-1).flip(-1)), layer(torch.stack([x, x], -1)[..., 0])]
    assert not thin
    expected = x.double() @ layer.weight.double().T + (layer.bias.double() if has_bias else 0.0)
    for out in found:
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)


def test_rows_do_not_depend_on_their_number(thin: list[tuple[int, ...]]) -> None:
    layer, x = Linear(768, 800), torch.randn(40, 768)
    with torch.inference_mode():
        found, parts = layer(x), torch.cat([layer(part) for part in x.split(7)])
    assert not thin
    torch.testing.assert_close(found, parts, atol=2e-6, rtol=2e-6)


def test_all_else_goes_the_usual_way(thin: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, many = Linear(5, 9), torch.randn(3, 5)
    layer(many[:2]).sum().backward()  # gradients are wanted
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(many[:0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(many[:2]).dtype is torch.bfloat16
        layer.double()(many[:2].double())
        layer.float()
        monkeypatch.setattr(linear, "LARGE", 46)
        layer(many[:2])
        monkeypatch.setattr(linear, "LARGE", 1)
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            layer(many[:3, :4])  # torch's own words, not those of the other library
        monkeypatch.setattr(linear, "_product", None)
        layer(many[:3])
    assert [shape[0] for shape in thin] == [2, 0, 2, 2, 2, 3, 3]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_forward_mode_derivatives_do_not_vanish(thin: list[tuple[int, ...]]) -> None:
    layer, x, tangent = Linear(5, 9), torch.randn(3, 5), torch.randn(3, 5)
    with torch.no_grad():
        _, found = torch.func.jvp(layer, (x,), (tangent,))
        jacobian = torch.func.jacfwd(layer)(x[0])
        with torch.autograd.forward_ad.dual_level():
            dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
            beside = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(found, tangent @ layer.weight.T)
    torch.testing.assert_close(beside, found)
    torch.testing.assert_close(jacobian, layer.weight.detach())


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_it_can_be_traced(thin: list[tuple[int, ...]]) -> None:
    layer, x = Linear(5, 9), torch.randn(3, 5)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(x[:2]), layer(x[:2]))


class Scaled(Tensor):
    """A weight that means something else than what it holds, as a quantised one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [(2 * each.as_subclass(Tensor)) if isinstance(each, Scaled) else each for each in args]
        return (
            func(*plain, **(kwargs or {}))
            if getattr(func, "__name__", "") == "linear"
            else super().__torch_function__(func, types, args, kwargs)
        )


def test_a_quantised_weight_goes_the_usual_way(thin: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    module, x = Linear(6, 5, bias=False), torch.rand(2, 6)
    with torch.no_grad():
        expected = 2 * module(x)
        module.weight = torch.nn.Parameter(module.weight.detach().as_subclass(Scaled), requires_grad=False)
        torch.testing.assert_close(module(x), expected)
        torch.testing.assert_close(linear.onto_rows(module, [1, 3])(x), expected[:, [1, 3]])
    assert not linear.is_dense(torch.empty(2, 2, device="meta"))


def test_the_other_library_counts_as_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LARGE", 1)
    module = Linear(6, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.rand(3, 2, 6))
    assert counter.get_total_flops() == 2 * 3 * 2 * 6 * 5
