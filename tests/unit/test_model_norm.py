"""Batch norm in place: what it computes, when it does, and that training is not touched."""

import pytest
import torch
from torch import nn

from unival.model.norm import FrozenBatchNorm, InPlace, normalise_in_place


def pair(kind: type, dims: int) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return a norm, its in-place twin, and an input."""
    norms = []
    for _ in range(2):
        torch.manual_seed(0)
        norm = kind(3)
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)
        norms.append(norm)
    normalise_in_place(norms[1])
    assert isinstance(norms[1], InPlace)
    assert isinstance(norms[1], kind)
    return *norms, torch.rand(2, 3, *[4] * dims)


CASES = [(nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3), (FrozenBatchNorm, 2), (FrozenBatchNorm, 3)]


@pytest.mark.parametrize(("kind", "dims"), CASES)
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_in_prediction_the_same_numbers_land_in_the_input(kind: type, dims: int, is_channels_last: bool) -> None:
    plain, ours, x = pair(kind, dims)
    if is_channels_last:
        x = x.contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
    with torch.inference_mode():
        expected = plain.eval()(x.clone())
        found = ours.eval()(x)
    assert found.data_ptr() == x.data_ptr()
    assert found.stride() == x.stride()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("kind", "dims"), CASES)
@pytest.mark.parametrize("is_training", [False, True])
def test_with_gradients_it_is_the_ordinary_norm(kind: type, dims: int, is_training: bool) -> None:
    plain, ours, x = pair(kind, dims)
    before, gradients = x.clone(), []
    for norm in (plain.train(is_training), ours.train(is_training)):
        own = x.clone().requires_grad_()
        norm(own).square().sum().backward()
        gradients.append(own.grad)
        assert torch.equal(own, before)
    assert torch.equal(*gradients)
    assert plain.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in plain.state_dict().items())


def test_a_hook_keeps_what_it_was_given() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    ).eval()
    nn.init.constant_(network[1].weight, 0.5)
    normalise_in_place(network)
    x, kept = torch.rand(2, 3, 4, 4), []
    with torch.inference_mode():
        expected = network[0](x).clone()
        before = network(x)
        handle = network[0].register_forward_hook(lambda module, given, out: kept.append(out))
        assert torch.allclose(network(x), before, atol=1e-6)
        assert torch.equal(kept[0], expected)
        handle.remove()
        network(x)
    assert len(kept) == 1


def test_another_precision_than_the_weights_is_left_to_torch() -> None:
    _, ours, x = pair(nn.BatchNorm2d, 2)
    half = x.bfloat16()
    with torch.inference_mode():
        assert ours.eval()(half).data_ptr() != half.data_ptr()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("kind", "dims"), CASES)
def test_forward_mode_and_batching_see_the_ordinary_norm(kind: type, dims: int) -> None:
    plain, ours, x = pair(kind, dims)
    before, tangent = x.clone(), torch.rand_like(x)
    with torch.no_grad():
        value, slope = torch.func.jvp(ours.eval(), (x,), (tangent,))
        batched = torch.vmap(ours)(torch.stack([x, 2 * x]))
        expected = torch.stack([plain.eval()(x), plain(2 * x)])
        scale = ours.weight * torch.rsqrt(ours.running_var + ours.eps)
    assert torch.equal(x, before)
    torch.testing.assert_close(batched, expected)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(slope, tangent * scale.view(3, *[1] * dims))
