"""Codes as running means of what is encoded with them (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1)."""

import torch
from torch import Tensor

DECAY = 0.98
RARE = 0.1  # uses per batch, below which a vector is moved


class RunningTable:
    """Starts a table from features and keeps each vector at the mean of the features that chose it.

    Args:
        table: Changed in place (N, C).
        features: To start from (B, C, h, w), at least N of them.
    """

    def __init__(self, table: Tensor, features: Tensor) -> None:
        self.table = table
        self.table[:] = spread(flattened(features), len(table))
        self.counts = torch.full((len(table),), features[:, 0].numel() / len(table), device=table.device)
        self.sums = self.counts[:, None] * self.table

    @torch.no_grad()
    def follow(self, features: Tensor, codes: Tensor, may_move: bool) -> None:
        """Move the vectors towards the features (B, C, h, w) of their codes (B, h, w); rare ones to bad places.

        A place is drawn in proportion to its squared error: one drawn evenly would nearly always be background.
        """
        flat, chosen = flattened(features), codes.flatten()
        self.counts.mul_(DECAY).add_(torch.bincount(chosen, minlength=len(self.table)), alpha=1 - DECAY)
        self.sums.mul_(DECAY).index_add_(0, chosen, flat, alpha=1 - DECAY)
        rare = (self.counts < RARE).nonzero()[:, 0]
        if may_move and len(rare):
            error = (flat - self.table[chosen]).square().sum(1)
            drawn = flat[torch.multinomial(error + 1e-9, len(rare), replacement=True)]
            self.counts[rare] = 1.0
            self.sums[rare] = drawn
        self.table[:] = self.sums / self.counts.clamp(min=1e-6)[:, None]


def flattened(features: Tensor) -> Tensor:
    """Return features (B, C, h, w) as rows (B h w, C)."""
    return features.movedim(1, -1).flatten(0, 2)


@torch.no_grad()
def spread(features: Tensor, number: int) -> Tensor:
    """Return rows (number, C) of features (M, C), each drawn in proportion to the squared distance from those before.

    That is the start of k-means++ (Arthur and Vassilvitskii 2007).
    """
    drawn = [features[torch.randint(len(features), ())]]
    distance = features.new_full((len(features),), torch.inf)
    for _ in range(number - 1):
        distance = torch.minimum(distance, (features - drawn[-1]).square().sum(1))
        drawn.append(features[torch.multinomial(distance + 1e-9, 1)[0]])
    return torch.stack(drawn)
