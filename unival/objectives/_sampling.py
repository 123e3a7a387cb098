"""Draw sequences from the model for reward objectives: all samples of a batch in one cached pass over the decoder.

`generate` would do, but gives neither the log-probability of each sample nor a greedy sequence along with them, and
costs more Python per step than a small model computes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from unival.model.linear import onto_rows
from unival.model.modeling import UnivalEncoderOutput, UnivalForConditionalGeneration

UNKNOWN = 3  # id of `<unk>`
BLOCK = 64  # symbols


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
    columns: Tensor | None = None,
) -> Drawn:
    """Draw `num` sequences per example; with `adds_greedy` one more, last, that takes the most probable token.

    Padding and `<s>` are never drawn, `</s>` not before `min_new_tokens`. Log-probabilities are those of the whole
    distribution all the same, as they are in training. With `columns` (`allowed_ids`) there are no other ids than
    these, and `<unk>` is not drawn either.
    """
    assert encoded.last_hidden_state is not None
    config, device = model.config, encoded.last_hidden_state.device
    rows, group = len(encoded.last_hidden_state), num + adds_greedy
    is_greedy = torch.arange(rows * group, device=device) % group == num
    ended = torch.zeros_like(is_greedy)
    last = torch.full((rows * group, 1), config.bos_token_id, device=device)
    layers: list[Any] = [FixedLayer(max_new_tokens) for _ in model.decoder.layers]
    cache = EncoderDecoderCache(Cache(layers=layers), DynamicCache())
    project = onto_rows(model.decoder.output_projection, columns)
    never = [config.pad_token_id, config.bos_token_id] + [UNKNOWN] * (columns is not None)
    tokens, scores = [], []
    for step in range(max_new_tokens):
        features = model.decoder(last, encoded, cache, writes_codes=writes_codes)
        logits = project(features[:, -1]).float()
        possible = (logits if temperature == 1.0 else logits / temperature).softmax(-1)  # B*G V
        possible[:, never] = 0.0
        if step < min_new_tokens:
            possible[:, config.eos_token_id] = 0.0
        token = sample(possible)
        if adds_greedy:
            token = torch.where(is_greedy[:, None], possible.argmax(-1, keepdim=True), token)
        scores.append(possible.gather(-1, token).log().masked_fill(ended[:, None], 0.0))
        token = token if columns is None else columns[token]
        last = token.masked_fill(ended[:, None], config.pad_token_id)
        tokens.append(last)
        ended = ended | last[:, 0].eq(config.eos_token_id)
        if ended.all():
            break
    return Drawn(*(torch.cat(columns, dim=1).unflatten(0, (rows, group)) for columns in (tokens, scores)))


class FixedLayer(DynamicLayer):
    """Keys and values of one layer, written into tensors of the final length: a new token copies no old ones."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.filled = length, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the states (B, H, T, K) of the next tokens and return those of all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, width = key_states.shape
            self.room = [states.new_empty(rows, heads, self.length, width) for states in (key_states, value_states)]
        start, self.filled = self.filled, self.filled + key_states.shape[2]
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start : self.filled] = states
        self.keys, self.values = (room[:, :, : self.filled] for room in self.room)
        return self.keys, self.values


def sample(weights: Tensor) -> Tensor:
    """Draw one column (B, 1) of each row of weights (B, V) >= 0: a block of them, then one of the block.

    Running sums over all symbols, or a random number for each as in `torch.multinomial`, would take a tenth to a fifth
    of the time of sampling from a small model.
    """
    blocks = F.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # B N BLOCK
    block = pick(blocks.sum(-1))
    return block * BLOCK + pick(blocks.take_along_dim(block[..., None], 1)[:, 0])


def pick(weights: Tensor) -> Tensor:
    """Draw one column (B, 1) of each row of weights (B, N) >= 0 by looking a random number up in the running sums."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    height = torch.rand(len(weights), 1, dtype=torch.float64, device=weights.device) * sums[:, -1:]
    return torch.searchsorted(sums, height, right=True).clamp(max=weights.shape[1] - 1)


def is_random(module: nn.Module, unused: Iterable[nn.Module] = ()) -> bool:
    """Tell whether a module computes something else in training than in evaluation: dropout, batch statistics.

    `unused` parts do not count.
    """
    rates = ("p", "rate", "drop_prob")  # of torch's dropout, our stochastic depth, timm's
    skipped = {id(part) for other in unused for part in other.modules()}
    return any(
        part.training and (isinstance(part, _BatchNorm) or any(getattr(part, rate, 0.0) > 0.0 for rate in rates))
        for part in module.modules()
        if id(part) not in skipped
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
