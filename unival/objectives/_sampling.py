"""Draw sequences from the model for reward objectives: all samples of a batch in one cached pass over the decoder.

`generate` would do, but gives neither the log-probability of each sample nor a greedy sequence along with them, and
costs more Python per step than a small model computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from unival.model.modeling import UnivalEncoderOutput, UnivalForConditionalGeneration


class Drawn(NamedTuple):
    """Sequences of B examples, G each.

    Attributes:
        tokens: (B, G, T) without `<s>`; they end with `</s>` and padding, or at the limit.
        log_probs: (B, G, T) of the model in evaluation mode at the temperature; 0 at padding.
    """

    tokens: Tensor
    log_probs: Tensor


@torch.no_grad()
def draw(
    model: UnivalForConditionalGeneration,
    encoded: UnivalEncoderOutput,
    num: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    adds_greedy: bool = False,
    writes_codes: bool = False,
) -> Drawn:
    """Draw `num` sequences per example; with `adds_greedy` one more, last, that takes the most probable token.

    Padding and `<s>` are never drawn, `</s>` not before `min_new_tokens`. Log-probabilities are those of the whole
    distribution all the same, as they are in training.
    """
    assert encoded.last_hidden_state is not None
    config, device = model.config, encoded.last_hidden_state.device
    rows, group = len(encoded.last_hidden_state), num + adds_greedy
    is_greedy = torch.arange(rows * group, device=device) % group == num
    ended = torch.zeros_like(is_greedy)
    last = torch.full((rows * group, 1), config.bos_token_id, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    tokens, scores = [], []
    for step in range(max_new_tokens):
        features = model.decoder(last, encoded, cache, writes_codes=writes_codes)
        logits = model.decoder.output_projection(features[:, -1]).float() / temperature
        log_probs = logits.log_softmax(-1)  # B*G V
        possible = log_probs.exp()
        possible[:, [config.pad_token_id, config.bos_token_id]] = 0.0
        if step < min_new_tokens:
            possible[:, config.eos_token_id] = 0.0
        token = sample(possible)
        if adds_greedy:
            token = torch.where(is_greedy[:, None], possible.argmax(-1, keepdim=True), token)
        scores.append(log_probs.gather(-1, token).masked_fill(ended[:, None], 0.0))
        last = token.masked_fill(ended[:, None], config.pad_token_id)
        tokens.append(last)
        ended = ended | last[:, 0].eq(config.eos_token_id)
        if ended.all():
            break
    return Drawn(*(torch.cat(columns, dim=1).unflatten(0, (rows, group)) for columns in (tokens, scores)))


def sample(weights: Tensor) -> Tensor:
    """Draw one column (B, 1) of each row of weights (B, V) >= 0.

    One random number a row is looked up in the running sums; `torch.multinomial` draws one for every symbol, a fifth of
    the time of sampling from a small model.
    """
    sums = weights.cumsum(-1, dtype=torch.float64)
    height = torch.rand(len(weights), 1, dtype=torch.float64, device=weights.device) * sums[:, -1:]
    return torch.searchsorted(sums, height, right=True).clamp(max=weights.shape[1] - 1)


def is_random(module: nn.Module) -> bool:
    """Tell whether a module computes something else in training than in evaluation: dropout, batch statistics."""
    rates = ("p", "rate", "drop_prob")  # of torch's dropout, our stochastic depth, timm's
    return any(
        part.training and (isinstance(part, _BatchNorm) or any(getattr(part, rate, 0.0) > 0.0 for rate in rates))
        for part in module.modules()
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and batch statistics; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
