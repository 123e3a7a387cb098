"""Small parts that are tuned while the rest is frozen: adapters and prefixes (specification 2.10), low-rank updates.

They exist only where the configuration asks for them; names are the original's, and those of PEFT for low-rank updates,
which can also be PEFT's own. What is frozen is said by a stage of the training (`train_only`).

Shapes: B rows, S tokens, D width, H heads, K head width, N prefix length.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Prefix = tuple[Tensor, Tensor]
"""Learned keys and values of one layer, (1, H, N, K) each."""

PREFIX_DROPOUT = 0.2  # fixed in the original


class Adapter(nn.Module):
    """Bottleneck with a residual connection (Houlsby et al. 2019), after the feed-forward half of a layer."""

    def __init__(self, d_model: int, adapter_dim: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(d_model, adapter_dim)
        self.up_proj = nn.Linear(adapter_dim, d_model)

    def forward(self, x: Tensor, num_media: int = 0) -> Tensor:
        """Transform `x` (B, S, D); `num_media` is of no interest here."""
        return x + self.up_proj(F.relu(self.down_proj(x)))


class TwinAdapter(nn.Module):
    """One adapter for media tokens and one for text tokens (the original's type `VL`)."""

    def __init__(self, d_model: int, adapter_dim: int) -> None:
        super().__init__()
        self.v_adapter = Adapter(d_model, adapter_dim)
        self.l_adapter = Adapter(d_model, adapter_dim)

    def forward(self, x: Tensor, num_media: int = 0) -> Tensor:
        """Transform `x` (B, S, D), whose first `num_media` tokens are media."""
        media, text = x[:, :num_media], x[:, num_media:]
        return torch.cat([self.v_adapter(media), self.l_adapter(text)], dim=1)


class LowRankLinear(nn.Linear):
    """A linear map with a low-rank update beside its matrix, zero at first (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__(in_features, out_features)
        self.lora_A = nn.Parameter(torch.randn(rank, in_features) * in_features**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` (..., in) to (..., out)."""
        return super().forward(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_low_rank(model: nn.Module, rank: int, alpha: float) -> None:
    """Give the query and value projections of all attention low-rank updates, as the paper of LoRA does."""
    for module in list(model.modules()):
        for name in ("q_proj", "v_proj"):
            linear = getattr(module, name, None)
            if isinstance(linear, nn.Linear):
                setattr(module, name, LowRankLinear(linear.in_features, linear.out_features, rank, alpha))


def all_rows(embedding: nn.Module) -> Tensor:
    """Return every row of an embedding: its weight, or what it computes where the weight is not all.

    PEFT puts something beside it; where accelerate has offloaded it, it comes when the module is called.
    """
    weight = cast(Tensor, embedding.weight)
    if type(embedding) is nn.Embedding and not weight.is_meta:
        return weight
    return embedding(torch.arange(len(weight), device="cpu" if weight.is_meta else weight.device))


class PrefixEncoder(nn.Module):
    """Learned keys and values for every layer (Li and Liang 2021), free or through a two-layer network.

    Args:
        d_model, num_layers, num_heads: Of the Transformer half it belongs to.
        length: Positions N that are put before all others.
        hidden_dim: Width of the network; 0 learns the keys and values directly.
    """

    def __init__(self, d_model: int, num_layers: int, num_heads: int, length: int, hidden_dim: int = 0) -> None:
        super().__init__()
        self.shape = (num_layers, 2, num_heads, d_model // num_heads)
        size = num_layers * 2 * d_model
        self.embedding = nn.Embedding(length, d_model if hidden_dim else size)
        self.trans = None
        if hidden_dim:
            self.trans = nn.Sequential(nn.Linear(d_model, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, size))

    def forward(self) -> Sequence[Prefix]:
        """Return the prefix of each layer."""
        x = all_rows(self.embedding)
        x = x if self.trans is None else self.trans(x)
        x = F.dropout(x, PREFIX_DROPOUT, self.training).unflatten(-1, self.shape)  # N layers 2 H K
        return [(layer[:1], layer[1:]) for layer in x.permute(1, 2, 3, 0, 4)]
