"""Additive attention biases: absolute positions shared by all layers, relative tables per layer, masks (2.3)."""

import torch
from torch import Tensor, nn

from unival.errors import UserError
from unival.model import positions
from unival.model.configuration import UnivalConfig


class PositionBias(nn.Module):
    """Base of encoder and decoder: absolute-position logits shared by all layers and relative tables per layer."""

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

    def text_position_embeddings(self, length: int) -> Tensor:
        """Return normed absolute text positions (length, D); rows count from 0 and include padding."""
        limit = self.config.max_text_positions
        if length > limit:
            raise UserError(f"{length} text tokens exceed max_text_positions = {limit}", fix="shorten the text")
        return self.pos_ln(self.embed_positions.weight[:length])

    def absolute_bias(self, query: Tensor, key: Tensor, q_linear: nn.Linear, k_linear: nn.Linear) -> Tensor:
        """Return content-free logits (1, H, T, S) of query positions (T, D) and key positions (S, D)."""
        q = q_linear(query).unflatten(-1, (self.num_heads, -1)) * self.bias_scale
        k = k_linear(key).unflatten(-1, (self.num_heads, -1))
        return torch.einsum("thk,shk->hts", q, k)[None]

    def text_bias(self, layer: int, queries: slice, length: int) -> Tensor:
        """Return the relative text bias (H, T, length) of a layer for the query rows given by a slice."""
        table = self.token_rel_pos_table_list[layer].weight
        buckets = positions.text_buckets(self.config.text_bucket_size, self.config.max_text_positions)
        return table[buckets[queries, :length].to(table.device)].permute(2, 0, 1)

    def image_bias(self, layer: int, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Return the relative 2-D bias (H, T, S) of a layer between grid ids (T,) and (S,)."""
        table = self.image_rel_pos_table_list[layer].weight
        buckets = positions.image_buckets(self.config.image_bucket_size)[query_ids][:, key_ids]
        return table[buckets.to(table.device)].permute(2, 0, 1)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean key mask (B, S) into an additive one (B, 1, 1, S): 0 where True, the dtype's minimum elsewhere."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


def causal_bias(start: int, length: int, like: Tensor) -> Tensor:
    """Return the additive causal mask (length - start, length) for queries at positions start..length-1."""
    future = torch.ones(length - start, length, dtype=torch.bool, device=like.device).triu(start + 1)
    zero = torch.zeros(length - start, length, dtype=like.dtype, device=like.device)
    return zero.masked_fill(future, torch.finfo(like.dtype).min)
