"""Attention against torch's own, head scales, stochastic depth."""

import pytest
import torch
from torch.nn import functional as F

from unival.model.layers import Attention, DecoderLayer, DropPath, EncoderLayer


def naive_attention(attention: Attention, x: torch.Tensor, bias: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Compute attention head by head as the specification words it (section 2.3)."""
    heads = []
    width = x.shape[-1] // attention.num_heads
    query = attention.q_proj(x) * (width * 2.0) ** -0.5
    key, value = attention.k_proj(memory), attention.v_proj(memory)
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        weights = (query[..., part] @ key[..., part].mT + bias[:, head]).softmax(-1)
        heads.append(weights @ value[..., part] * attention.c_attn[head])
    return attention.out_proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("has_memory", [False, True])
def test_attention_is_the_specified_sum(has_memory: bool) -> None:
    attention = Attention(12, 3, scale_factor=2.0, layer_index=0).double()
    torch.nn.init.uniform_(attention.c_attn, 0.5, 1.5)
    x, memory = torch.randn(2, 4, 12).double(), torch.randn(2, 5, 12).double()
    bias = torch.randn(2, 3, 4, 5 if has_memory else 4).double()
    ours = attention(x, bias, memory=memory if has_memory else None)
    expected = naive_attention(attention, x, bias, memory if has_memory else x)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=1e-12)


def test_attention_without_scales_is_torchs_multi_head_attention() -> None:
    attention = Attention(8, 2, scale_factor=1.0, layer_index=0).double()
    x = torch.randn(3, 5, 8).double()
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    expected, _ = F.multi_head_attention_forward(
        *([x.transpose(0, 1)] * 3),
        embed_dim_to_check=8,
        num_heads=2,
        in_proj_weight=torch.cat([p.weight for p in projections]),
        in_proj_bias=torch.cat([p.bias for p in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.out_proj.weight,
        out_proj_bias=attention.out_proj.bias,
        need_weights=False,
    )
    bias = torch.zeros(1, 2, 5, 5).double()
    torch.testing.assert_close(attention(x, bias), expected.transpose(0, 1), atol=1e-12, rtol=1e-12)


def test_a_head_with_scale_zero_is_silent() -> None:
    attention = Attention(4, 2, 2.0, 0)
    x, bias = torch.randn(1, 3, 4), torch.zeros(1, 2, 3, 3)
    attention.c_attn.data = torch.tensor([0.0, 1.0])
    attention.v_proj.weight.data[2:] = 0.0
    attention.v_proj.bias.data[2:] = 0.0
    assert torch.equal(attention(x, bias)[0, 0], attention.out_proj.bias)


def test_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(ValueError, match="d_model 10 is not a multiple of 3 attention heads"):
        Attention(10, 3, 2.0, 0)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    drop, x = DropPath(0.25).train(), torch.ones(20000, 2, 3)
    out = drop(x)
    values = out.unique().tolist()
    assert values == [0.0, pytest.approx(1 / 0.75)]
    assert bool((out == out[:, :1, :1]).all())  # one draw per sample
    # The share of 20000 kept samples has a standard deviation of 0.003.
    assert float(out[:, 0, 0].count_nonzero()) / 20000 == pytest.approx(0.75, abs=0.015)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_layers_are_pre_norm_with_a_norm_inside_each_branch() -> None:
    layer = EncoderLayer(8, 2, 16, 2.0, dropout=0.0, drop_path=0.0).double()
    x, bias = torch.randn(2, 3, 8).double(), torch.randn(1, 2, 3, 3).double()
    middle = x + layer.attn_ln(layer.self_attn(layer.self_attn_layer_norm(x), bias))
    hidden = layer.ffn_layernorm(F.gelu(layer.fc1(layer.final_layer_norm(middle))))
    torch.testing.assert_close(layer(x, bias), middle + layer.fc2(hidden), atol=1e-12, rtol=1e-12)


def test_decoder_layer_attends_to_itself_then_to_the_memory() -> None:
    layer = DecoderLayer(8, 2, 16, 2.0, 0.0, 0.0, 0).double()
    x, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 4, 8).double()
    bias, cross = torch.randn(1, 2, 3, 3).double(), torch.randn(1, 2, 3, 4).double()
    own = x + layer.self_attn_ln(layer.self_attn(layer.self_attn_layer_norm(x), bias))
    read = layer.encoder_attn(layer.encoder_attn_layer_norm(own), cross, memory=memory)
    middle = own + layer.cross_attn_ln(read)
    expected = middle + layer.feed_forward(middle)
    torch.testing.assert_close(layer(x, bias, memory, cross), expected, atol=1e-12, rtol=1e-12)
