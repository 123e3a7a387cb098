"""Additive attention biases: absolute positions shared by all layers, relative tables per layer, masks (2.3).

No table of pairs of positions is stored: buckets are computed from ids where they are needed, on the weights' device. A
decoding step computes the row of the new token only.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from unival.errors import UserError
from unival.model import positions
from unival.model.configuration import UnivalConfig
from unival.model.linear import is_dense
from unival.model.tuning import all_rows


class PositionBias(nn.Module):
    """Base of encoder and decoder: absolute-position logits shared by all layers and relative tables per layer."""

    token_bucket_of_distance: Tensor
    # Set by `gradient_checkpointing_enable` of transformers.
    gradient_checkpointing: bool = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, config: UnivalConfig, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        width, grid = config.d_model, config.image_bucket_size
        self.num_heads = num_heads
        self.bias_scale = (width // num_heads * config.attn_scale_factor) ** -0.5
        self.embed_positions = nn.Embedding(config.max_text_positions + 2, width)
        self.embed_image_positions = nn.Embedding(grid * grid + 1, width)
        self.pos_ln = nn.LayerNorm(width)
        self.image_pos_ln = nn.LayerNorm(width)
        text_rows, image_rows = 2 * config.text_bucket_size - 1, positions.num_image_buckets(grid)
        self.token_rel_pos_table_list = nn.ModuleList(nn.Embedding(text_rows, num_heads) for _ in range(num_layers))
        self.image_rel_pos_table_list = nn.ModuleList(nn.Embedding(image_rows, num_heads) for _ in range(num_layers))
        self.num_text_buckets = text_rows
        self.register_buffer("token_bucket_of_distance", self.distance_buckets(), persistent=False)

    def distance_buckets(self) -> Tensor:
        """Compute the bucket of every distance query - key, from the most negative to the most positive."""
        limit = self.config.max_text_positions
        return positions.text_bucket(torch.arange(1 - limit, limit), self.config.text_bucket_size, limit)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the buffer after a construction without memory."""
        with torch.device("cpu"):
            init.copy_(self.token_bucket_of_distance, self.distance_buckets())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move as any module, and compute the buffer when it gets memory: `to_empty` does not fill it."""
        had_memory = not self.token_bucket_of_distance.is_meta
        super()._apply(fn, recurse)
        if not had_memory and not self.token_bucket_of_distance.is_meta:
            self.reset_parameters()
        return self

    def run_layer(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """Run a layer; with gradient checkpointing it keeps its inputs only and is run again in the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer.__call__, *inputs)
        return layer(*inputs)

    def text_position_embeddings(self, length: int) -> Tensor:
        """Return normed absolute text positions (length, D); rows count from 0 and include padding."""
        limit = self.config.max_text_positions
        if length > limit:
            raise UserError(f"{length} text tokens exceed max_text_positions = {limit}", fix="shorten the text")
        return self.pos_ln(all_rows(self.embed_positions)[:length])

    def absolute_bias(self, query: Tensor, key: Tensor, q_linear: nn.Linear, k_linear: nn.Linear) -> Tensor:
        """Return content-free logits (B, H, T, S) of query positions (B, T, D) and key positions (B, S, D).

        B is 1 where all rows have the same positions. With fewer queries than a head is wide, (q W) k costs less than
        q (W k): a decoding step has one query, and does not project all keys again.
        """
        q = q_linear(query).unflatten(-1, (self.num_heads, -1)) * self.bias_scale  # B T H K
        is_plain = type(k_linear) is nn.Linear and is_dense(k_linear.weight)  # an adapted one is more than its weight
        if is_plain and query.shape[1] < q.shape[-1]:
            weight = k_linear.weight.unflatten(0, (self.num_heads, -1))  # H K D
            constant = (q * k_linear.bias.unflatten(0, (self.num_heads, -1))).sum(-1)  # B T H
            through = torch.einsum("bthk,hkd->bhtd", q, weight) @ key[:, None].mT  # B H T S
            return through + constant.transpose(1, 2)[..., None]
        k = k_linear(key).unflatten(-1, (self.num_heads, -1))  # B S H K
        return q.transpose(1, 2) @ k.permute(0, 2, 3, 1)

    def text_buckets(self, start: int, length: int) -> Tensor:
        """Return relative text buckets (length - start, length) of queries start..length-1."""
        device = self.embed_positions.weight.device
        if self.token_bucket_of_distance.is_meta and device.type != "meta":  # `load_state_dict(assign=True)`
            with torch.inference_mode(False), torch.device("cpu"):
                self.token_bucket_of_distance = self.distance_buckets().to(device)
        position = torch.arange(length, device=self.token_bucket_of_distance.device)
        distance = position[start:, None] - position
        return self.token_bucket_of_distance[distance + self.config.max_text_positions - 1]

    def image_buckets(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Return relative 2-D buckets (..., T, S) between grid ids (..., T) and (..., S)."""
        return positions.image_bucket(query_ids[..., None], key_ids[..., None, :], self.config.image_bucket_size)

    def text_table(self, layer: int) -> Tensor:
        """Return the relative text table (text buckets, H) of a layer."""
        return all_rows(self.token_rel_pos_table_list[layer])

    def image_table(self, layer: int) -> Tensor:
        """Return the relative 2-D table (image buckets, H) of a layer."""
        return all_rows(self.image_rel_pos_table_list[layer])


def relative_bias(table: Tensor, buckets: Tensor) -> Tensor:
    """Look up buckets (..., T, S) in a table (buckets, H); return (..., H, T, S)."""
    return F.embedding(buckets, table).movedim(-1, -3)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean key mask (B, S) into an additive one (B, 1, 1, S): 0 where True, the dtype's minimum elsewhere."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def causal_bias(start: int, length: int, like: Tensor) -> Tensor:
    """Return the additive causal mask (length - start, length) for queries at positions start..length-1."""
    future = torch.ones(length - start, length, dtype=torch.bool, device=like.device).triu(start + 1)
    zero = torch.zeros(length - start, length, dtype=like.dtype, device=like.device)
    return zero.masked_fill(future, torch.finfo(like.dtype).min)
