"""Large 3x3 convolutions are computed with fewer products, with the same result; all others are torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival.model import convolution
from unival.model.convolution import Conv2d, convolve_faster, winograd


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Record the inputs' shapes that reach the fast algorithm."""
    seen = []

    def recorded(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return winograd(x, weight)

    monkeypatch.setattr(convolution, "winograd", recorded)
    return seen


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 7), (9, 4), (14, 15)])
@pytest.mark.parametrize("channels", [(1, 1), (5, 3), (16, 32)])
def test_it_is_the_convolution_of_every_size(size: tuple[int, int], channels: tuple[int, int]) -> None:
    x, weight = values(2, channels[0], *size), values(channels[1], channels[0], 3, 3, seed=1) / channels[0] ** 0.5
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(winograd(x, weight).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("is_last", [False, True])
def test_the_layout_of_the_input_is_kept_and_the_input_too(is_last: bool) -> None:
    kind = torch.channels_last if is_last else torch.contiguous_format
    x = values(2, 4, 7, 7).contiguous(memory_format=kind)
    before, found = x.clone(), winograd(x, values(6, 4, 3, 3))
    assert found.is_contiguous(memory_format=kind)
    assert torch.equal(x, before)


def test_a_batch_read_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = values(5, 8, 9, 9), values(8, 8, 3, 3)
    whole = winograd(x, weight)
    monkeypatch.setattr(convolution, "PART_BYTES", 2 * 25 * 9 * 8 * 4)  # two rows
    torch.testing.assert_close(winograd(x, weight), whole, atol=1e-5, rtol=1e-5)


def test_the_rounding_error_is_about_twice_the_usual() -> None:
    x, weight = values(2, 256, 30, 30).relu(), values(256, 256, 3, 3, seed=1) / 48
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    both = F.conv2d(x, weight, padding=1), winograd(x, weight)
    usual, found = ((y - expected).square().mean().sqrt() for y in both)
    assert found < 1e-6
    assert found < 4 * usual  # 1.8 on AVX2; in which order torch adds depends on the processor


def test_in_prediction_a_large_one_is_fast_and_right(calls: list[tuple[int, ...]]) -> None:
    layer, plain = Conv2d(256, 256, 3, padding=1, bias=False), nn.Conv2d(256, 256, 3, padding=1, bias=False)
    plain.load_state_dict(layer.state_dict())
    x = values(1, 256, 30, 30)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), plain(x), atol=1e-5, rtol=1e-5)
        layer.weight.mul_(2)  # nothing of the old weights is kept
        torch.testing.assert_close(layer(x), 2 * plain(x), atol=2e-5, rtol=1e-5)
    assert calls == [(1, 256, 30, 30)] * 2


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"bias": True}, (1, 256, 30, 30)),
        ({"stride": 2}, (1, 256, 60, 60)),
        ({"padding": 0}, (1, 256, 32, 32)),
        ({"padding": "same"}, (1, 256, 30, 30)),
        ({"dilation": 2}, (1, 256, 32, 32)),
        ({"groups": 2}, (1, 256, 30, 30)),
        ({"padding_mode": "circular"}, (1, 256, 30, 30)),
        ({"kernel_size": 1, "padding": 0}, (1, 256, 30, 30)),
        ({}, (1, 256, 9, 9)),  # few tiles
        ({}, (256, 30, 30)),  # one picture without a batch
        ({}, (0, 256, 30, 30)),
    ],
)
def test_every_other_one_is_left_to_torch(
    options: dict[str, Any], shape: tuple[int, ...], calls: list[tuple[int, ...]]
) -> None:
    options = {"kernel_size": 3, "padding": 1, "bias": False, **options}
    layer, plain = Conv2d(256, 256, **options), nn.Conv2d(256, 256, **options)
    plain.load_state_dict(layer.state_dict())
    with torch.inference_mode():
        assert torch.equal(layer(values(*shape)), plain(values(*shape)))
    assert not calls


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_gradients_other_precisions_and_derivatives_are_left_to_torch(calls: list[tuple[int, ...]]) -> None:
    layer, x = Conv2d(256, 256, 3, padding=1, bias=False), values(1, 256, 30, 30)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        torch.func.jvp(layer, (x,), (x,))
        assert Conv2d(256, 256, 3, padding=1, bias=False).double()(x.double()).dtype == torch.float64
        with pytest.raises(RuntimeError, match="expected input"):
            layer(values(1, 128, 30, 30))
    assert not calls


def test_a_module_keeps_its_names_and_values() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv1d(4, 4, 1)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    convolve_faster(module)
    assert [type(m) is Conv2d for m in module.modules() if not isinstance(m, nn.Sequential)] == [True, True, False]
    assert before.keys() == module.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
