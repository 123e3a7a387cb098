"""Label-smoothed cross entropy over target tokens (specification 7.1, without masks and drop-worst)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from unival.batch import Batch
from unival.model.modeling import MEDIA_INPUTS, MediaTokens, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.objectives.base import Loss


class Objective:
    """Mean over target tokens of `(1 - eps - eps_i) nll + eps_i * sum of -log p`, `eps_i = eps / (V - 1)`.

    Args:
        processor: Belongs to the model.
        label_smoothing: eps.
        normalise: `token` averages over the tokens of the batch, so long targets dominate; `example` averages the
            per-example sums, which weighs a one-word answer like a caption.
    """

    def __init__(
        self, processor: UnivalProcessor, label_smoothing: float = 0.0, normalise: str = "token"
    ) -> None:
        self.label_smoothing = label_smoothing
        self.normalise = normalise

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch) -> Loss:
        """Return the loss of a batch and, for each of its tasks, the mean token loss of its examples."""
        eps = self.label_smoothing
        eps_i = eps / (model.config.vocab_size - 1)
        total, num_tokens, logs = torch.zeros(()), 0, {}
        modality = batch.examples[0].modality
        media = encode_media(model, batch)
        for name, rows in rows_by_task(batch).items():
            nll, smooth = token_losses(model, batch, media, rows)
            total = total + ((1.0 - eps - eps_i) * nll + eps_i * smooth).sum()
            num_tokens += len(nll)
            logs[f"loss/{modality}_{name}"] = nll.detach().mean().item()
        return Loss(total / (num_tokens if self.normalise == "token" else len(batch.examples)), logs)


def rows_by_task(batch: Batch) -> dict[str, Tensor]:
    """Return the rows of each task, (rows,) each: tasks differ in length, so apart they need little padding."""
    names = batch.task_names or [""] * len(batch.examples)
    return {
        name: torch.tensor([i for i, n in enumerate(names) if n == name]) for name in dict.fromkeys(names)
    }


def token_losses(
    model: UnivalForConditionalGeneration, batch: Batch, media: MediaTokens | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Return -log p of every real target token of some rows, and the sum of -log p over the vocabulary, both (tokens,).

    The softmax is computed in float32, and only where there is a target.
    """
    pad_id = model.config.pad_token_id
    target = trim(batch.target[rows], pad_id)
    prompt = trim(batch.inputs["input_ids"][rows], pad_id)
    index = batch.inputs.get("media_index")
    encoded = model.encoder(prompt, media_index=rows if index is None else index[rows], media_tokens=media)
    features = model.decoder(model.shift_right(target), encoded)
    keep = target.ne(pad_id)
    log_probs = F.log_softmax(model.decoder.output_projection(features[keep]).float(), dim=-1)
    return -log_probs.gather(-1, target[keep][:, None])[:, 0], -log_probs.sum(-1)


def trim(ids: Tensor, pad_id: int) -> Tensor:
    """Cut the columns of (B, T) right-padded ids that hold only padding."""
    return ids[:, : int(ids.ne(pad_id).sum(1).max())]


def encode_media(model: UnivalForConditionalGeneration, batch: Batch) -> MediaTokens | None:
    """Encode the media of a batch once, for all its tasks."""
    return model.encoder.encode_media(**{k: v for k, v in batch.inputs.items() if k in MEDIA_INPUTS.values()})
