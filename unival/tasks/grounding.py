"""Visual grounding: find the region that an expression names (specification 4.4).

Record: {"uid": "3", "image": "a.jpg", "text": "the red apple", "box": [3, 4, 40, 50], "width": 96, "height": 96}
Boxes are x0, y0, x1, y1 in pixels of the original picture.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from unival.batch import Example
from unival.data.clean import clean_caption
from unival.metrics.iou import LARGE_AREA_PX, SMALL_AREA_PX, Size, accuracy_by_size, box_accuracy, box_iou
from unival.model.tokenizer import box_to_text, text_to_box
from unival.tasks.base import Scores, TaskArgs, column, is_clean

MAX_WORDS = 80
CLASSES: tuple[Size, ...] = ("small", "medium", "large")


class Task(TaskArgs):
    """Write four position tokens.

    Attributes:
        num_bins: Positions of the tokenizer: 100 of unival-tiny, 1,000 of the released models. An evaluation and
            `unival predict` take the model's own when it is not given.
        thresholds: IoU from which a box counts; the first is the one to select checkpoints by, as `accuracy@0.5`.
        by_size: Also report accuracies by the area of the reference, with both denominators: `accuracy@0.5/small` of
            all samples (the original's), `accuracy@0.5/small_of_class` of those of the class.
        small_area_px, large_area_px: Square pixels below and above which a reference is small and large.
    """

    monitor: ClassVar[str] = "accuracy@0.5"
    max_new_tokens: ClassVar[int] = 5
    min_new_tokens: ClassVar[int] = 4
    prompt: str = 'which region does the text " {text} " describe?'
    num_bins: int = Field(default=100, ge=2)
    thresholds: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.5,)
    by_size: bool = False
    small_area_px: float = SMALL_AREA_PX
    large_area_px: float = LARGE_AREA_PX

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask for the region; the target is the quantised box."""
        size = column(record, "width"), column(record, "height")
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(text=expression(record, MAX_WORDS)),
            target=box_to_text(record["box"], *size, self.num_bins) if "box" in record else "",
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> list[float] | None:
        """Return the box in pixels of the original picture, None when the text holds no box."""
        return text_to_box(text, record["width"], record["height"], self.num_bins)

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return "box" in record

    def score(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return whether the IoU reaches each threshold, by size if asked, and the IoU; no box counts as empty."""
        boxes, targets = as_boxes(predictions, records)
        scores: Scores = {}
        for threshold in self.thresholds:
            scores[f"accuracy@{threshold:g}"] = box_accuracy(boxes, targets, threshold).per_sample
            for size in CLASSES if self.by_size else ():
                limits = {"small_area_px": self.small_area_px, "large_area_px": self.large_area_px}
                found = box_accuracy(boxes, targets, threshold, size=size, **limits)
                scores[f"accuracy@{threshold:g}/{size}"] = found.per_sample
        return scores | {"iou": box_iou(boxes, targets)}

    def corpus(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the accuracy within each size class and its number of samples; a class without any has no accuracy."""
        if not self.by_size:
            return {}
        boxes, targets = as_boxes(predictions, records)
        limits = {"small_area_px": self.small_area_px, "large_area_px": self.large_area_px}
        numbers = {}
        for threshold in self.thresholds:
            found = accuracy_by_size(boxes, targets, threshold, **limits)
            numbers |= {
                f"accuracy@{threshold:g}/{name}": x for name, x in found.items() if not name.endswith("_of_all")
            }
        return numbers


def expression(record: Mapping[str, Any], max_words: int) -> str:
    """Return the expression of a record as the original writes it."""
    text = column(record, "text")
    return text if is_clean(record) else clean_caption(text, max_words)


def as_boxes(predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and reference boxes (samples, 4); a missing box is empty."""
    boxes = np.array([box if box is not None else [0.0] * 4 for box in predictions], dtype=np.float64)
    return boxes, np.array([column(record, "box") for record in records], dtype=np.float64)
