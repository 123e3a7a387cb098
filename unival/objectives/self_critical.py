"""Self-critical training: raise the probability of samples that score above a baseline (Rennie et al. 2017).

Source: arXiv 1612.00563 (greedy baseline), Luo 2020, arXiv 2003.09971 (mean of the other samples), and the grounding
experiments of rewarded soups (specification 7.3: no baseline, a cross entropy beside it).
"""

from dataclasses import dataclass

import numpy as np

from unival.objectives._policy import PolicyObjective, check_choice
from unival.rewards import Rewards

BASELINES = ("others", "greedy", "group", "none")


@dataclass(kw_only=True)
class Objective(PolicyObjective):
    """REINFORCE: minimise `-(reward - baseline) log p` of sampled tokens."""

    baseline: str = "others"
    """`others`: mean reward of the other samples of the example. `greedy`: reward of the greedy sequence, which is
    decoded along with the samples. `group`: mean of all samples, divided by their standard deviation. `none`: 0."""

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, BASELINES)
        self.adds_greedy = self.baseline == "greedy"
        self.minimum_samples = 2 if self.baseline in ("others", "group") else 1
        super().__post_init__()

    def weigh(self, rewards: Rewards) -> Rewards:
        """Subtract the baseline."""
        return advantages(rewards, self.baseline)


def advantages(rewards: Rewards, baseline: str) -> Rewards:
    """Return reward minus baseline (B, K) for rewards (B, K), or (B, K + 1) with the greedy sequence last."""
    if baseline == "none":
        return rewards
    if baseline == "greedy":
        return rewards[:, :-1] - rewards[:, -1:]
    centred = rewards - rewards.mean(1, keepdims=True)
    if baseline == "group":
        return centred / (rewards.std(1, keepdims=True) + 1e-4)
    num = rewards.shape[1]
    return np.asarray(centred * num / (num - 1))
