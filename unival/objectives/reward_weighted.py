"""Reward-weighted likelihood: train on own samples, the better ones more (rewarded soups, arXiv 2306.04488, diffusion).

The paper keeps the better half of what the model generated, rescales its rewards to a minimum of 0 and a mean of 1, and
minimises the weighted likelihood loss. Here that is done for every batch, with fresh samples.
"""

from dataclasses import dataclass

import numpy as np

from unival.errors import UserError
from unival.objectives._policy import PolicyObjective
from unival.rewards import Rewards


@dataclass(kw_only=True)
class Objective(PolicyObjective):
    """Minimise `-w log p` of sampled tokens with weights w >= 0 from the rewards of the batch."""

    keep: float = 0.5
    """Share of the samples of a batch that are kept, the best ones."""

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise UserError(f"keep is {self.keep}", fix="give a share above 0, at most 1")
        super().__post_init__()

    def weigh(self, rewards: Rewards) -> Rewards:
        """Rescale the rewards of the best samples to minimum 0 and mean 1; all weigh 0 if these are equal."""
        return rescaled(rewards, self.keep)


def rescaled(rewards: Rewards, keep: float) -> Rewards:
    """Return weights of rewards of any shape: 0 outside the best share, above it minimum 0 and mean 1."""
    num = max(1, round(rewards.size * keep))
    best = np.argsort(-rewards, axis=None, kind="stable")[:num]
    above = rewards.flat[best] - rewards.flat[best].min()
    weights = np.zeros(rewards.size)
    if above.any():
        weights[best] = above / above.mean()
    return weights.reshape(rewards.shape)
