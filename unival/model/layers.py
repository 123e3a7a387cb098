"""Attention and Transformer layers: BART's shape with scaled heads and extra norms (specification 2.3, 2.4).

Shapes: B batch, S source tokens, T target tokens, D width, H heads, K head width, N prefix length, G beams per row.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, EncoderDecoderCache

from unival.model.linear import Linear
from unival.model.tuning import Adapter, Prefix, TwinAdapter


class DropPath(nn.Module):
    """Stochastic depth: drop the residual branch of whole samples, rescale the kept ones."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` (B, T, D)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class Attention(nn.Module):
    """Multi-head attention with an additive bias and one learned scale per head (`c_attn`).

    Attributes:
        weights: Those of the last call that was to keep them, (B, H, T, S), before the scale of the head.
    """

    weights: Tensor | None = None

    def __init__(self, d_model: int, num_heads: int, scale_factor: float, layer_index: int) -> None:
        super().__init__()
        if d_model % num_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of {num_heads} attention heads")
        self.num_heads = num_heads
        self.layer_index = layer_index
        self.scale = (d_model // num_heads * scale_factor) ** -0.5
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.out_proj = Linear(d_model, d_model)
        self.c_attn = nn.Parameter(torch.ones(num_heads))

    def split_heads(self, x: Tensor) -> Tensor:
        """Reshape (B, T, D) to (B, H, T, K)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        memory: Tensor | None = None,
        cache: Cache | None = None,
        prefix: Prefix | None = None,
        keeps_weights: bool = False,
    ) -> Tensor:
        """Attend from `x` (B, T, D) to itself or to `memory` (B, S, D).

        Args:
            x: Queries.
            bias: Added to the logits, broadcastable to (B, H, T, S); masked keys hold the dtype's minimum.
            memory: Encoder output for cross-attention; None for self-attention. It may have B / G rows, each read by G
                consecutive rows of `x`: the beams of one sample need one copy of its keys and values.
            cache: Key/value cache of `generate`; cross-attention keys are computed once per generation.
            prefix: Learned keys and values (1, H, N, K) before all others, with no bias.
            keeps_weights: Compute the weights by themselves, and keep them for `take_weights`.
        """
        rows = x.shape[0]
        key, value = self._keys_and_values(x, memory, cache)
        if prefix is not None:
            key = torch.cat([prefix[0].expand(rows, -1, -1, -1).to(key.dtype), key], dim=2)
            value = torch.cat([prefix[1].expand(rows, -1, -1, -1).to(value.dtype), value], dim=2)
            bias = F.pad(bias, (prefix[0].shape[2], 0))
        query = self.q_proj(x)
        groups = rows // max(key.shape[0], 1)
        if groups > 1:  # beams become further queries of their sample
            query = query.reshape(key.shape[0], -1, query.shape[-1])
            bias = bias if bias.shape[2] == 1 else bias.repeat(1, 1, groups, 1)  # that of one query holds for all
        query = self.split_heads(query)
        bias = bias.to(query.dtype)
        if keeps_weights:
            weights = (query @ key.mT * self.scale + bias).softmax(-1, dtype=torch.float32).to(query.dtype)
            out = weights @ value
            self.weights = weights.unflatten(2, (max(groups, 1), -1)).transpose(1, 2).flatten(0, 1)  # beams: rows again
        else:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)  # B H T K
        out = out * self.c_attn.to(out.dtype)[:, None, None]
        out = out.transpose(1, 2).flatten(2)
        return self.out_proj(out if groups <= 1 else out.reshape(rows, -1, out.shape[-1]))

    def _keys_and_values(self, x: Tensor, memory: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor]:
        if memory is None:
            key, value = self.split_heads(self.k_proj(x)), self.split_heads(self.v_proj(x))
            if isinstance(cache, EncoderDecoderCache):
                key, value = cache.self_attention_cache.update(key, value, self.layer_index)
            return key, value
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_index):
            layer = cache.cross_attention_cache.layers[self.layer_index]
            # Filled by `update`; only layers of linear attention, which we do not have, lack the two.
            return layer.keys, layer.values  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]
        key, value = self.split_heads(self.k_proj(memory)), self.split_heads(self.v_proj(memory))
        if isinstance(cache, EncoderDecoderCache):
            key, value = cache.cross_attention_cache.update(key, value, self.layer_index)
            cache.is_updated[self.layer_index] = True
        return key, value


def take_weights(layers: nn.ModuleList, name: str) -> tuple[Tensor, ...]:
    """Return the weights that one attention of every layer kept, and let go of them."""
    found = []
    for layer in layers:
        attention = getattr(layer, name)
        found.append(attention.weights)
        attention.weights = None
    return tuple(found)


class FeedForward(nn.Module):
    """The feed-forward half that both kinds of layer share; its parameters keep the original's names."""

    final_layer_norm: nn.LayerNorm
    fc1: Linear
    ffn_layernorm: nn.LayerNorm
    fc2: Linear
    adapter: Adapter | TwinAdapter | None

    def add_feed_forward(self, d_model: int, ffn_dim: int, adapter: Adapter | TwinAdapter | None) -> None:
        """Create the parameters under the original's names."""
        self.final_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = Linear(d_model, ffn_dim)
        self.ffn_layernorm = nn.LayerNorm(ffn_dim)
        self.fc2 = Linear(ffn_dim, d_model)
        self.adapter = adapter

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the residual branch of `x` (B, T, D), before the adapter."""
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(self.final_layer_norm(x)))))


class Residual(nn.Module):
    """Dropout and stochastic depth applied to a residual branch."""

    def __init__(self, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, branch: Tensor, adapter: Adapter | TwinAdapter | None = None, num_media: int = 0
    ) -> Tensor:
        """Return `x` plus the regularised branch, which an adapter may change after its dropout."""
        branch = self.dropout(branch)
        if adapter is not None:
            branch = adapter(branch, num_media)
        return x + self.drop_path(branch)


class EncoderLayer(FeedForward):
    """Pre-norm self-attention and feed-forward, each with a norm inside its branch."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        ffn_dim: int,
        scale_factor: float,
        dropout: float,
        drop_path: float,
        adapter: Adapter | TwinAdapter | None = None,
    ) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = Attention(d_model, num_heads, scale_factor, 0)
        self.attn_ln = nn.LayerNorm(d_model)
        self.add_feed_forward(d_model, ffn_dim, adapter)
        self.residual = Residual(dropout, drop_path)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        num_media: int = 0,
        prefix: Prefix | None = None,
        keeps_weights: bool = False,
    ) -> Tensor:
        """Transform `x` (B, S, D), media tokens first, under `bias` (broadcastable to (B, H, S, S))."""
        branch = self.self_attn(self.self_attn_layer_norm(x), bias, prefix=prefix, keeps_weights=keeps_weights)
        x = self.residual(x, self.attn_ln(branch))
        return self.residual(x, self.feed_forward(x), self.adapter, num_media)


class DecoderLayer(FeedForward):
    """Pre-norm causal self-attention, cross-attention and feed-forward, each with a norm inside its branch."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        ffn_dim: int,
        scale_factor: float,
        dropout: float,
        drop_path: float,
        layer_index: int,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        self.self_attn = Attention(d_model, num_heads, scale_factor, layer_index)
        self.self_attn_ln = nn.LayerNorm(d_model)
        self.encoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.encoder_attn = Attention(d_model, num_heads, scale_factor, layer_index)
        self.cross_attn_ln = nn.LayerNorm(d_model)
        self.add_feed_forward(d_model, ffn_dim, adapter)
        self.residual = Residual(dropout, drop_path)

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        memory: Tensor,
        cross_bias: Tensor,
        cache: Cache | None = None,
        prefix: Prefix | None = None,
        keeps_weights: bool = False,
    ) -> Tensor:
        """Transform `x` (B, T, D) given `memory` (B, S, D) or (B / G, S, D), see `Attention`."""
        given = {"cache": cache, "keeps_weights": keeps_weights}
        branch = self.self_attn(self.self_attn_layer_norm(x), self_bias, prefix=prefix, **given)
        x = self.residual(x, self.self_attn_ln(branch))
        branch = self.encoder_attn(self.encoder_attn_layer_norm(x), cross_bias, memory=memory, **given)
        x = self.residual(x, self.cross_attn_ln(branch))
        return self.residual(x, self.feed_forward(x), self.adapter)


def drop_path_rates(last: float, num: int) -> list[float]:
    """Return `num` evenly spaced drop-path rates from 0 to `last`.

    Raises:
        ValueError: If `last` is no rate.
    """
    if not 0.0 <= last < 1.0:
        raise ValueError(f"drop_path is {last}, not a rate of at least 0 and below 1")
    return [last * index / max(num - 1, 1) for index in range(num)]
