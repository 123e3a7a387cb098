"""Self-critical training: raise the probability of samples that score above a baseline (Rennie et al. 2017).

The reward is any function of `unival.rewards`, or a weighted sum of several (the multi-objective baseline of rewarded
soups, arXiv 2306.04488).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from unival.batch import Batch
from unival.errors import UserError
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives.base import Loss
from unival.objectives.cross_entropy import encode_media, token_losses, trim
from unival.rewards import weighted_reward

BASELINES = ("others", "group")


class Objective:
    """REINFORCE on sampled captions.

    Args:
        processor: Belongs to the model.
        rows: Returns records of the training stream; rewards with corpus statistics (CIDEr-D) are fitted on them.
        rewards: Weight of each reward by name.
        reward_args: Arguments of each reward by name.
        samples: Sequences drawn per example.
        baseline: `others` subtracts the mean reward of the other samples of the example; `group` also divides by
            their standard deviation (GRPO's advantage).
        temperature: Of sampling.
        supervised: Weight of a teacher-forced cross entropy on the reference, which keeps the language in shape.
        max_new_tokens: Limit of a sample's length.
    """

    def __init__(
        self,
        processor: UnivalProcessor,
        rows: Callable[[], Sequence[Mapping[str, Any]]],
        rewards: Mapping[str, float],
        reward_args: Mapping[str, Mapping[str, Any]] | None = None,
        samples: int = 4,
        baseline: str = "others",
        temperature: float = 1.0,
        supervised: float = 0.0,
        max_new_tokens: int = 32,
    ) -> None:
        if baseline not in BASELINES:
            raise UserError(f"unknown baseline {baseline!r}", fix=f"valid: {', '.join(BASELINES)}")
        if samples < 2:
            raise UserError(f"samples is {samples}", fix="a baseline from the other samples needs at least 2")
        self.processor = processor
        self.reward = weighted_reward(rewards, reward_args, records=rows())
        self.samples, self.baseline, self.temperature = samples, baseline, temperature
        self.supervised, self.max_new_tokens = supervised, max_new_tokens

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch) -> Loss:
        """Sample, score, and return the policy-gradient loss averaged over sampled tokens."""
        sampled = self.sample(model, batch)  # B*K T
        records = [example.record for example in batch.examples for _ in range(self.samples)]
        reward = self.reward(self.processor.decode(sampled), records).reshape(-1, self.samples)
        weight = torch.from_numpy(advantages(reward, self.baseline)).float().flatten()
        media = encode_media(model, batch)
        rows = torch.arange(len(batch.examples)).repeat_interleave(self.samples)
        log_prob, keep = sequence_log_probs(model, batch, media, rows, sampled)
        loss = -(weight[:, None] * log_prob).sum() / keep.sum()
        logs = {"reward": float(reward.mean()), "length": float(keep.sum() / len(keep))}
        if self.supervised > 0.0:
            nll, _, _ = token_losses(model, batch, media, torch.arange(len(batch.examples)))
            loss = loss + self.supervised * nll.mean()
        return Loss(loss, logs)

    def sample(self, model: UnivalForConditionalGeneration, batch: Batch) -> Tensor:
        """Draw sequences (B * samples, T) that end with `</s>` or padding, without the start token."""
        was_training = {module: module.training for module in model.modules()}
        model.eval()
        with torch.no_grad():
            ids = model.generate(
                **batch.inputs,
                do_sample=True,
                top_k=0,
                temperature=self.temperature,
                num_return_sequences=self.samples,
                max_new_tokens=self.max_new_tokens,
            )
        for module, training in was_training.items():
            module.training = training
        return ids[:, 1:]


def advantages(reward: np.ndarray, baseline: str) -> np.ndarray:
    """Return reward minus baseline for rewards (B, K); for `group` divided by the group's standard deviation."""
    if baseline == "group":
        return (reward - reward.mean(1, keepdims=True)) / (reward.std(1, keepdims=True) + 1e-4)
    samples = reward.shape[1]
    return (reward - reward.mean(1, keepdims=True)) * samples / (samples - 1)


def sequence_log_probs(
    model: UnivalForConditionalGeneration, batch: Batch, media: Any, rows: Tensor, sampled: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (rows, T) of sampled tokens under the current weights, zero at padding, and the mask."""
    pad_id = model.config.pad_token_id
    index = batch.inputs.get("media_index")
    prompt = trim(batch.inputs["input_ids"][rows], pad_id)
    encoded = model.encoder(prompt, media_index=rows if index is None else index[rows], media_tokens=media)
    logits = model.decoder.output_projection(model.decoder(model.shift_right(sampled), encoded)).float()
    keep = sampled.ne(pad_id)
    return F.log_softmax(logits, dim=-1).gather(-1, sampled[..., None])[..., 0] * keep, keep
