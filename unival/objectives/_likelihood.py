"""From a batch to decoder features where there is a target, and from features to numbers per token in bounded memory.

Shapes: B rows, T target tokens, D width, V vocabulary, n target tokens of all rows together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unival.batch import Batch
from unival.errors import UserError
from unival.model.linear import onto_rows
from unival.model.modeling import MEDIA_INPUTS, MediaTokens, UnivalEncoderOutput, UnivalForConditionalGeneration

# float32 logits that exist at a time; they are several times as large as all else in a step with 59,457 symbols
LOGITS_BYTES = 128 * 2**20
CHUNK_TOKENS = 64  # cost of a chunk besides its tokens: the gradient of every weight is added up once more
NUM_SPECIAL = 4  # `<s> <pad> </s> <unk>` stay possible under a constraint range


class Targets(NamedTuple):
    """Target tokens that are not padding, row after row.

    Attributes:
        features: Decoder features (n, D) that predict them.
        ids: (n,).
        row: (n,) row of the target matrix.
        place: (n,) column of the target matrix.
    """

    features: Tensor
    ids: Tensor
    row: Tensor
    place: Tensor


def encode_media(model: UnivalForConditionalGeneration, batch: Batch) -> MediaTokens | None:
    """Encode the media of a batch once, for all its tasks."""
    return model.encoder.encode_media(**{k: v for k, v in batch.inputs.items() if k in MEDIA_INPUTS.values()})


def encode(
    model: UnivalForConditionalGeneration, batch: Batch, media: MediaTokens | None, rows: Tensor | None = None
) -> UnivalEncoderOutput:
    """Encode the prompts of some rows, or of all, with their media."""
    prompt, index = batch.inputs["input_ids"], batch.inputs.get("media_index")
    if rows is not None:
        prompt, index = prompt[rows], rows if index is None else index[rows]
    return model.encoder(trim(prompt, model.config.pad_token_id), media_index=index, media_tokens=media)


def decode(
    model: UnivalForConditionalGeneration, batch: Batch, encoded: UnivalEncoderOutput, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return decoder features (B, T, D) under the reference prefix of some rows, or all, and their targets (B, T)."""
    target, prefix = batch.target, batch.prefix
    if rows is not None:
        target, prefix = target[rows], None if prefix is None else prefix[rows]
    length = int(target.ne(model.config.pad_token_id).nonzero()[:, 1].max()) + 1
    target = target[:, :length]
    prefix = model.shift_right(target) if prefix is None else prefix[:, :length]
    return model.decoder(prefix, encoded, writes_codes=batch.writes_codes), target


def at_targets(features: Tensor, target: Tensor, pad_id: int) -> Targets:
    """Pick the features (B, T, D) where the target (B, T) is no padding: the projection runs on these only."""
    row, place = target.ne(pad_id).nonzero(as_tuple=True)
    return Targets(features[row, place], target[row, place], row, place)


def log_likelihood(
    model: UnivalForConditionalGeneration, found: Targets, temperature: float = 1.0, columns: Tensor | None = None
) -> Tensor:
    """Return the log-probability (n,) of each target token, in float32, with logits divided by `temperature`.

    With `columns` (`allowed_ids`) it is that among these ids.
    """
    project = onto_rows(model.decoder.output_projection, columns)

    def score(features: Tensor, ids: Tensor) -> Tensor:
        logits = project(features).float()
        return -F.cross_entropy(logits if temperature == 1.0 else logits / temperature, ids, reduction="none")

    ids = found.ids if columns is None else column_of(found.ids, columns)
    return by_chunks(score, [found.features, ids], model.config.vocab_size if columns is None else len(columns))


def allowed_ids(constraint_range: Sequence[int] | None, vocab_size: int, device: torch.device) -> Tensor | None:
    """Return the ascending ids under a constraint range: the product with the others is not computed at all.

    Raises:
        UserError: The range is not one of the vocabulary.
    """
    if constraint_range is None:
        return None
    if len(constraint_range) != 2 or not all(isinstance(number, int) for number in constraint_range):
        raise UserError(f"constraint_range is {constraint_range}", fix="give two token ids: the first, and the end")
    first, end = constraint_range
    if not NUM_SPECIAL <= first < end <= vocab_size:
        what = f"constraint_range is {first}, {end}"
        raise UserError(what, fix=f"give first and end with {NUM_SPECIAL} <= first < end <= {vocab_size}")
    return torch.cat([torch.arange(NUM_SPECIAL, device=device), torch.arange(first, end, device=device)])


def column_of(ids: Tensor, columns: Tensor) -> Tensor:
    """Return the position of each id (n,) in the ascending `columns`.

    Raises:
        UserError: If one is not there.
    """
    place = torch.searchsorted(columns, ids).clamp(max=len(columns) - 1)
    outside = columns[place].ne(ids)
    if outside.any():
        what = f"target token {int(ids[outside][0])} is outside constraint_range"
        raise UserError(what, fix="widen the range, or give tasks with other targets their own stage")
    return place


def by_chunks(score: Callable[..., Tensor], inputs: Sequence[Tensor], width: int) -> Tensor:
    """Call `score` on slices of the inputs (n, ...) and join the results along n.

    A slice has at most `LOGITS_BYTES` of float32 numbers, `width` a token. If one is not enough, slices keep nothing
    for the backward pass, which computes them again: a fourth product with the vocabulary matrix for bounded memory.
    """
    size = max(1, LOGITS_BYTES // (4 * width))
    if len(inputs[0]) <= size:
        return score(*inputs)
    slices = zip(*(tensor.split(size) for tensor in inputs), strict=True)
    parts = (checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False) for part in slices)
    return torch.cat([cast(Tensor, part) for part in parts])


def trim(ids: Tensor, pad_id: int) -> Tensor:
    """Cut the columns of (B, T) right-padded ids that hold only padding."""
    return ids[:, : int(ids.ne(pad_id).sum(1).max())]


def length_chunks(batch: Batch, pad_id: int) -> list[Tensor]:
    """Split the rows in two, long targets and short ones, where padding costs least; one chunk if that is cheaper.

    Captions are five times as long as answers: decoded in one rectangle, most of it would be padding.
    """
    lengths = (batch.target if batch.prefix is None else batch.prefix).ne(pad_id).sum(1)
    prompts = batch.inputs["input_ids"].ne(pad_id).sum(1)
    order = torch.argsort(lengths, stable=True)
    longest_prompt = torch.cummax(prompts[order], 0).values  # of the rows up to each position
    longest_rest = torch.cummax(prompts[order].flip(0), 0).values.flip(0)
    size = torch.arange(1, len(order) + 1, device=order.device)
    head = size * (longest_prompt + lengths[order])
    rest = (len(order) - size[:-1]) * (longest_rest[1:] + lengths.max()) + CHUNK_TOKENS
    split = int((head + torch.cat([rest, rest.new_zeros(1)])).argmin()) + 1
    return [chunk.sort().values for chunk in (order[:split], order[split:]) if len(chunk)]
