"""What passes between data, tasks and model: one example type, one batch type, one place that pads.

Axes: B examples, N media, L prompt tokens, T target tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Modality = Literal["image", "video", "audio", "text"]
PromptType = Literal["none", "src", "prev_output"]


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
        where: File and line of the row, for messages.
        prompt_type: What the decoder reads before the target: nothing, the prompt with its `</s>` (`src`), or without
            (`prev_output`). These tokens are no part of the loss.
        num_unscored: Target tokens at the start that are no part of the loss either, except `</s>`.
        writes_codes: The target is a picture as codes.
    """

    uid: str
    prompt: str
    target: str = ""
    modality: Modality = "text"
    media: Any = None
    media_id: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    prompt_type: PromptType = "none"
    num_unscored: int = 0
    writes_codes: bool = False


@dataclass(slots=True)
class Batch:
    """Examples of one modality as tensors.

    Attributes:
        inputs: Arguments of the encoder: `input_ids`, `attention_mask` (B, L), at most one media tensor with N rows,
            and `media_index` (B,).
        target: (B, T) token ids that end with `</s>`, padded with the pad id.
        examples: The B examples.
        task_names: Name of the task of each example.
        entries: Place of its task in the group that the batch was drawn from.
        prefix: (B, T) ids read by the decoder, where they are not the target shifted by one: a question before the
            answer, whose target positions are padding (specification 4.1).
        writes_codes: The targets are pictures as codes.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    examples: list[Example]
    task_names: list[str] = field(default_factory=list)
    entries: list[int] = field(default_factory=list)
    prefix: Tensor | None = None
    writes_codes: bool = False

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        prefix = None if self.prefix is None else self.prefix.to(device)
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, target=self.target.to(device), prefix=prefix)


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Right-pad lists of ids to one (B, longest) int64 tensor."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows], dtype=torch.long)


def decoder_sides(
    examples: Sequence[Example], prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor | None]:
    """Return what the decoder writes (B, T), and what it reads where that is not the same shifted by one.

    With the prompt `q` and the answer `a` (specification 4.1), `prev_output` reads `<s> q a` and writes `a </s>` behind
    as many pads as `q` has tokens; `src` reads `<s> q </s> a`.

    Args:
        examples: Their `prompt_type` and `num_unscored` decide.
        prompts, targets: Ids with `<s>` and `</s>`.
        pad_id: Marks what is not written, and fills up.
    """
    if all(example.prompt_type == "none" and not example.num_unscored for example in examples):
        return pad([target[1:] for target in targets], pad_id), None
    written, read = [], []
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        before = {"none": target[:1], "src": prompt, "prev_output": prompt[:-1]}[example.prompt_type]
        num_hidden = min(example.num_unscored, len(target) - 2)
        written.append([pad_id] * (len(before) - 1 + num_hidden) + list(target[1 + num_hidden :]))
        read.append([*before, *target[1:-1]])
    return pad(written, pad_id), pad(read, pad_id)
