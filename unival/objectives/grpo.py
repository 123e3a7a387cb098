"""Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300): group-normalised rewards, clipped ratios.

One update is made per sampled batch. The ratio compares the pass that is trained with the pass that sampled, so it is 1
(up to rounding) without dropout, and the gradient is then that of `self_critical` with the `group` baseline. With
dropout, batch statistics or bf16 the two passes differ, and the clip keeps a token on which they disagree from pushing
further.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unival.errors import UserError
from unival.objectives._policy import PolicyObjective
from unival.objectives.self_critical import advantages
from unival.rewards import Rewards


@dataclass(kw_only=True)
class Objective(PolicyObjective):
    """Minimise `-min(r A, clip(r, 1 - clip, 1 + clip) A)`, A the reward normalised in its group, r = p / p_sampled."""

    normalise: str = "sequence"
    clip: float = 0.2
    """How far the ratio counts."""

    minimum_samples = 2

    def __post_init__(self) -> None:
        if not 0.0 < self.clip < 1.0:
            raise UserError(f"clip is {self.clip}", fix="give a number between 0 and 1, such as 0.2")
        super().__post_init__()

    def weigh(self, rewards: Rewards) -> Rewards:
        """Subtract the mean of the group and divide by its standard deviation."""
        return advantages(rewards, "group")

    def token_loss(self, log_probs: Tensor, old: Tensor, weights: Tensor) -> Tensor:
        """Return the clipped surrogate."""
        ratio = (log_probs - old).exp()
        return -torch.minimum(ratio * weights, ratio.clamp(1.0 - self.clip, 1.0 + self.clip) * weights)
