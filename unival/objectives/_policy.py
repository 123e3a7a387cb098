"""What reward objectives share: sample, score, and weigh the log-probabilities of what was sampled.

The policy is the distribution that samples come from: the model's at the sampling temperature. All log-probabilities,
the start model's too, are taken at that temperature; otherwise the gradient would be that of another policy.

Shapes: B examples, K samples of each, G = K or K + 1 with a greedy one, T tokens, n sampled tokens in all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unival.batch import Batch
from unival.checkpoint import load_model
from unival.errors import UserError
from unival.model.modeling import MEDIA_INPUTS, MediaTokens, UnivalEncoderOutput, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives._likelihood import (
    Targets,
    allowed_ids,
    at_targets,
    decode,
    encode,
    encode_media,
    log_likelihood,
)
from unival.objectives._sampling import Drawn, draw, evaluation_mode, is_random
from unival.objectives._scoring import Scorer
from unival.objectives.base import Loss, check_at_least
from unival.rewards import Rewards, weighted_reward

NORMALISATIONS = ("token", "sequence")
PREFIXES = ("reference", "sampled")


@dataclass(kw_only=True)
class PolicyObjective:
    """Base of the reward objectives; a subclass turns rewards into weights."""

    processor: UnivalProcessor
    """Belongs to the model."""
    rows: Callable[[], Sequence[Mapping[str, Any]]]
    """Returns records of the training stream; rewards with corpus statistics (CIDEr-D) are fitted on them."""
    rewards: Mapping[str, float]
    """Weight of each reward by name; several make the multi-objective baseline of rewarded soups."""
    reward_args: Mapping[str, Mapping[str, Any]] | None = None
    """Arguments of each reward by name."""
    reward_workers: int = 0
    """Processes that compute rewards while the model runs on; 0 computes them in line."""
    samples: int = 4
    """Sequences drawn per example."""
    temperature: float = 1.0
    """Of the policy: of sampling and of the log-probabilities."""
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    """Limits of a sample's length; at `max_new_tokens` it is cut without `</s>`."""
    constraint_range: Sequence[int] | None = None
    """[first, end]: nothing but these ids and `</s>` is drawn. As in `cross_entropy`, log-probabilities are those among
    these ids and the four special ones, and the others are not computed: picture codes."""
    normalise: str = "token"
    """`token` averages over all sampled tokens; `sequence` over the tokens of each sequence, then over sequences."""
    kl: float = 0.0
    """Weight of the divergence from the start model."""
    start: str | None = None
    """Folder or name of the start model; needed with `kl`."""
    supervised: float = 0.0
    """Weight of a cross entropy on the reference, which keeps the language in shape."""
    supervised_prefix: str = "reference"
    """`reference` is teacher forcing. `sampled` is the original's quirk: the reference's tokens are expected after the
    sampled prefix (specification 7.3)."""
    scorer: Scorer = field(init=False)

    minimum_samples = 1
    adds_greedy = False

    def __post_init__(self) -> None:
        check_choice("normalise", self.normalise, NORMALISATIONS)
        check_choice("supervised_prefix", self.supervised_prefix, PREFIXES)
        if self.samples < self.minimum_samples:
            raise UserError(f"samples is {self.samples}", fix=f"this objective needs at least {self.minimum_samples}")
        if self.temperature <= 0.0:
            raise UserError(f"temperature is {self.temperature}", fix="give a positive number")
        if self.kl > 0.0 and self.start is None:
            raise UserError("kl needs the start model", fix="give `start`, the same as `init` of the run")
        check_at_least(1, max_new_tokens=self.max_new_tokens)
        limits = {"min_new_tokens": self.min_new_tokens, "reward_workers": self.reward_workers}
        check_at_least(0, kl=self.kl, supervised=self.supervised, **limits)
        self._start_model: UnivalForConditionalGeneration | None = None
        if self.processor is None:  # the arguments are checked before there are data
            return
        bins = {"num_bins": self.processor.num_bins}
        reward = weighted_reward(self.rewards, self.reward_args, records=self.rows(), given=bins)
        self.scorer = Scorer(reward, self.reward_workers)

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch, update: int = 0) -> Loss:
        """Sample, score, and return the loss; rewards are waited for only when all forward passes are done."""
        media = encode_media(model, batch)
        encoded = encode(model, batch, media)
        used, unused = media_encoders(model, batch)
        drawn = self.draw(
            model,
            batch,
            None if is_random(model.encoder, unused) else encoded,
            None if any(map(is_random, used)) else media,
        )
        wait = self.score(batch, drawn)
        sampled = drawn.tokens[:, : self.samples].flatten(0, 1)  # B*K T
        features = model.decoder(model.shift_right(sampled), encoded, writes_codes=batch.writes_codes)
        found = at_targets(features, sampled, model.config.pad_token_id)
        log_probs = self.log_likelihood(model, found)  # n
        share, size = self.shares(found, len(sampled))
        value, logs = log_probs.new_zeros(()), {}
        if self.supervised > 0.0:
            value = self.supervised * self.supervision(model, batch, encoded, features, found)
        if self.kl > 0.0:
            divergence = (self.divergence(log_probs, batch, sampled) * share).sum()
            value, logs = value + self.kl * divergence, {"kl": divergence.item()}
        terms = wait()
        rewards = self.scorer.reward.total(terms).reshape(len(batch.examples), -1)  # B G
        weights = torch.from_numpy(self.weigh(rewards)).to(log_probs).flatten()[found.row]
        old = drawn.log_probs[:, : self.samples].flatten(0, 1)[found.row, found.place]
        value = value + (self.token_loss(log_probs, old, weights) * share).sum()
        logs |= {"reward": float(rewards[:, : self.samples].mean()), "length": len(log_probs) / len(sampled)}
        if len(terms) > 1:
            groups = {name: scores.reshape(rewards.shape)[:, : self.samples] for name, scores in terms.items()}
            logs |= {f"reward/{name}": float(scores.mean()) for name, scores in groups.items()}
        return Loss(value, logs, size)

    def weigh(self, rewards: Rewards) -> Rewards:
        """Turn rewards (B, G) into weights (B, K) of the log-probabilities."""
        raise NotImplementedError

    def token_loss(self, log_probs: Tensor, old: Tensor, weights: Tensor) -> Tensor:
        """Return the loss of each sampled token; `old` are the log-probabilities it was sampled with. All (n,)."""
        return -weights * log_probs

    def draw(
        self,
        model: UnivalForConditionalGeneration,
        batch: Batch,
        encoded: UnivalEncoderOutput | None = None,
        media: MediaTokens | None = None,
    ) -> Drawn:
        """Sample from the model in evaluation mode; `encoded` and `media` are given if training computed the same."""
        with torch.no_grad(), evaluation_mode(model):
            if encoded is None:
                media = encode_media(model, batch) if media is None else media
                encoded = encode(model, batch, media)
            limits = self.max_new_tokens, self.min_new_tokens, self.temperature
            columns = self.columns(model)
            return draw(model, encoded, self.samples, *limits, self.adds_greedy, batch.writes_codes, columns)

    def columns(self, model: UnivalForConditionalGeneration) -> Tensor | None:
        """Return the ids under the constraint range, None when there is none."""
        return allowed_ids(self.constraint_range, model.config.vocab_size, model.device)

    def log_likelihood(self, model: UnivalForConditionalGeneration, found: Targets) -> Tensor:
        """Return the log-probability (n,) of each token under the policy of a model."""
        return log_likelihood(model, found, self.temperature, self.columns(model))

    def score(self, batch: Batch, drawn: Drawn) -> Callable[[], dict[str, Rewards]]:
        """Start scoring all sequences; the result is (B * G,) by reward."""
        records = [example.record for example in batch.examples for _ in range(drawn.tokens.shape[1])]
        return self.scorer.submit(self.processor.decode(drawn.tokens.flatten(0, 1)), records)

    def size(self, batch: Batch, update: int = 0) -> float | None:
        """Return what `Loss.size` of a batch will be, None when it depends on what is sampled."""
        return len(batch.examples) * self.samples if self.normalise == "sequence" else None

    def shares(self, found: Targets, num_sequences: int) -> tuple[Tensor, int]:
        """Return what each token counts in the mean (n,), and how many tokens or sequences it is over."""
        num = len(found.ids)
        if self.normalise == "token":
            return torch.full_like(found.ids, 1.0 / num, dtype=torch.float32), num
        lengths = torch.bincount(found.row, minlength=num_sequences)
        return 1.0 / (lengths[found.row] * num_sequences), num_sequences

    def supervision(
        self,
        model: UnivalForConditionalGeneration,
        batch: Batch,
        encoded: UnivalEncoderOutput,
        features: Tensor,
        found: Targets,
    ) -> Tensor:
        """Return -log p of the reference per token, at temperature 1.

        Under the sampled prefix, the reference has no `</s>`, is cut to the sample's length, and the sum is divided by
        the number of sampled tokens.
        """
        pad_id = model.config.pad_token_id
        if self.supervised_prefix == "reference":
            own, target = decode(model, batch, encoded)
            return -log_likelihood(model, at_targets(own, target, pad_id), columns=self.columns(model)).mean()
        target = batch.target.masked_fill(batch.target.eq(model.config.eos_token_id), pad_id)
        target = target.repeat_interleave(self.samples, dim=0)[:, : features.shape[1]]
        reference = at_targets(features[:, : target.shape[1]], target, pad_id)
        return -log_likelihood(model, reference, columns=self.columns(model)).sum() / len(found.ids)

    def divergence(self, log_probs: Tensor, batch: Batch, sampled: Tensor) -> Tensor:
        """Estimate KL(policy || start) at each sampled token (n,): `r - 1 - log r` with r = p_start / p.

        It is unbiased and never negative ("k3" of Schulman, http://joschu.net/blog/kl-approx.html).
        """
        if self._start_model is None:
            assert self.start is not None
            self._start_model = load_model(self.start)[0].requires_grad_(False)
        start = self._start_model.to(log_probs.device)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            encoded = encode(start, batch, encode_media(start, batch))
            features = start.decoder(start.shift_right(sampled), encoded, writes_codes=batch.writes_codes)
            found = at_targets(features, sampled, start.config.pad_token_id)
            log_ratio = self.log_likelihood(start, found)
        log_ratio = log_ratio - log_probs
        return log_ratio.exp() - 1.0 - log_ratio


def media_encoders(model: UnivalForConditionalGeneration, batch: Batch) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the media encoders that a batch needs, and the model's others."""
    parts = {modality: getattr(model.encoder, f"embed_{modality}s", None) for modality in MEDIA_INPUTS}
    used = [part for modality, part in parts.items() if part is not None and MEDIA_INPUTS[modality] in batch.inputs]
    return used, [part for part in parts.values() if part is not None and part not in used]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise UserError(f"unknown {name} {value!r}", fix=f"valid: {', '.join(choices)}")
