"""Label-smoothed cross entropy over target tokens (specification 7.1, without masks and drop-worst)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from unival.batch import Batch
from unival.errors import UserError
from unival.model.modeling import MEDIA_INPUTS, MediaTokens, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives.base import Loss

NORMALISATIONS = ("token", "example")


class Objective:
    """Mean over target tokens of `(1 - eps - eps_i) nll + eps_i * sum of -log p`, `eps_i = eps / (V - 1)`.

    Args:
        processor: Belongs to the model.
        label_smoothing: eps.
        normalise: `token` averages over the tokens of the batch, so long targets dominate; `example` averages the
            per-example sums, which weighs a one-word answer like a caption.
    """

    def __init__(self, processor: UnivalProcessor, label_smoothing: float = 0.0, normalise: str = "token") -> None:
        if normalise not in NORMALISATIONS:
            raise UserError(f"unknown normalise {normalise!r}", fix=f"valid: {', '.join(NORMALISATIONS)}")
        self.label_smoothing = label_smoothing
        self.normalise = normalise

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch) -> Loss:
        """Return the loss of a batch and, for each of its tasks, the mean token loss of its examples."""
        eps = self.label_smoothing
        eps_i = eps / (model.config.vocab_size - 1)
        media = encode_media(model, batch)
        total, losses, owners = torch.zeros(()), [], []
        for rows in length_chunks(batch, model.config.pad_token_id):
            nll, smooth, owner = token_losses(model, batch, media, rows)
            total = total + ((1.0 - eps - eps_i) * nll + eps_i * smooth).sum()
            losses.append(nll.detach())
            owners.append(owner)
        nll, owner = torch.cat(losses), torch.cat(owners)
        logs = task_means(batch, nll, owner)
        return Loss(total / (len(nll) if self.normalise == "token" else len(batch.examples)), logs)


def task_means(batch: Batch, nll: Tensor, owner: Tensor) -> dict[str, float]:
    """Average token losses (tokens,) over the tokens of each task; `owner` is the row of every token."""
    modality = batch.examples[0].modality
    names = batch.task_names or ["all"] * len(batch.examples)
    kinds = sorted(set(names))
    kind = torch.tensor([kinds.index(name) for name in names])[owner]
    sums, counts = torch.bincount(kind, nll, len(kinds)), torch.bincount(kind, minlength=len(kinds))
    return {f"loss/{modality}_{name}": float(s / c) for name, s, c in zip(kinds, sums, counts, strict=True)}


def length_chunks(batch: Batch, pad_id: int) -> list[Tensor]:
    """Split the rows in two, long targets and short ones, where padding costs least; one chunk if that is cheaper.

    Captions are five times as long as answers: decoded in one rectangle, most of it would be padding.
    """
    lengths = batch.target.ne(pad_id).sum(1)
    prompts = batch.inputs["input_ids"].ne(pad_id).sum(1)
    order = torch.argsort(lengths, stable=True)
    longest_prompt = torch.cummax(prompts[order], 0).values  # of the rows up to each position
    longest_rest = torch.cummax(prompts[order].flip(0), 0).values.flip(0)
    size = torch.arange(1, len(order) + 1)
    head = size * (longest_prompt + lengths[order])
    rest = torch.cat([(len(order) - size[:-1]) * (longest_rest[1:] + lengths.max()), torch.zeros(1, dtype=torch.long)])
    split = int((head + rest).argmin()) + 1
    return [chunk.sort().values for chunk in (order[:split], order[split:]) if len(chunk)]


def token_losses(
    model: UnivalForConditionalGeneration, batch: Batch, media: MediaTokens | None, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -log p of the real target tokens of some rows, the sum of -log p over the vocabulary, and each row.

    All are (tokens,). The softmax is computed in float32, and only where there is a target.
    """
    pad_id = model.config.pad_token_id
    target = trim(batch.target[rows], pad_id)
    prompt = trim(batch.inputs["input_ids"][rows], pad_id)
    index = batch.inputs.get("media_index")
    encoded = model.encoder(prompt, media_index=rows if index is None else index[rows], media_tokens=media)
    features = model.decoder(model.shift_right(target), encoded)
    keep = target.ne(pad_id)
    log_probs = F.log_softmax(model.decoder.output_projection(features[keep]).float(), dim=-1)
    nll = -log_probs.gather(-1, target[keep][:, None])[:, 0]
    return nll, -log_probs.sum(-1), rows[keep.nonzero()[:, 0]]


def trim(ids: Tensor, pad_id: int) -> Tensor:
    """Cut the columns of (B, T) right-padded ids that hold only padding."""
    return ids[:, : int(ids.ne(pad_id).sum(1).max())]


def encode_media(model: UnivalForConditionalGeneration, batch: Batch) -> MediaTokens | None:
    """Encode the media of a batch once, for all its tasks."""
    return model.encoder.encode_media(**{k: v for k, v in batch.inputs.items() if k in MEDIA_INPUTS.values()})
