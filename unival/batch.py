"""What passes between data, tasks and model: one example type, one batch type, one place that pads.

Axes: B examples, N media, L prompt tokens, T target tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Modality = Literal["image", "video", "audio", "text"]


@dataclass(frozen=True, slots=True)
class Example:
    """One question to the model and its answer, before any tensor is made.

    Attributes:
        uid: Identifies the example in logs and results.
        prompt: Text read by the encoder.
        target: Text that the decoder must write; empty when unknown.
        modality: Of `media`.
        media: A path, encoded bytes or an array; None for text only.
        media_id: Examples of a batch with the same id share one encoded medium.
        record: The row this example was made from, with the references that scores need.
    """

    uid: str
    prompt: str
    target: str = ""
    modality: Modality = "text"
    media: Any = None
    media_id: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Batch:
    """Examples of one modality as tensors.

    Attributes:
        inputs: Arguments of the encoder: `input_ids`, `attention_mask` (B, L), at most one media tensor with N rows,
            and `media_index` (B,).
        target: (B, T) token ids that end with `</s>`, padded with the pad id.
        examples: The B examples.
        task_names: Name of the task of each example.
        prefix: (B, T) ids read by the decoder, where they are not the target shifted by one: a question before the
            answer, whose target positions are padding (specification 4.1).
        writes_codes: The targets are pictures as codes.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    examples: list[Example]
    task_names: list[str] = field(default_factory=list)
    prefix: Tensor | None = None
    writes_codes: bool = False


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Right-pad lists of ids to one (B, longest) int64 tensor."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows], dtype=torch.long)
