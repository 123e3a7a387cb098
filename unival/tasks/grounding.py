"""Visual grounding: find the region that an expression names (specification 4.4).

Record: {"uid": "3", "image": "a.jpg", "text": "the red apple", "box": [3, 4, 40, 50], "width": 96, "height": 96}
Boxes are x0, y0, x1, y1 in pixels of the original picture.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from unival.batch import Example
from unival.metrics.iou import box_accuracy, box_iou
from unival.model.tokenizer import box_to_text, text_to_box
from unival.tasks.base import Scores, TaskArgs, column


class Task(TaskArgs):
    """Write four position tokens."""

    monitor: ClassVar[str] = "accuracy@0.5"
    max_new_tokens: ClassVar[int] = 5
    min_new_tokens: ClassVar[int] = 4
    prompt: str = 'which region does the text " {text} " describe?'
    num_bins: int = 100

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask for the region; the target is the quantised box."""
        size = column(record, "width"), column(record, "height")
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(text=column(record, "text")),
            target=box_to_text(record["box"], *size, self.num_bins) if "box" in record else "",
            record=record,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> list[float] | None:
        """Return the box in pixels of the original picture, None when the text holds no box."""
        return text_to_box(text, record["width"], record["height"], self.num_bins)

    def score(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the IoU and whether it reaches 0.5; a missing box counts as empty."""
        boxes = np.array([box if box is not None else [0.0] * 4 for box in predictions])
        references = np.array([column(record, "box") for record in records], dtype=np.float64)
        return {
            "accuracy@0.5": box_accuracy(boxes, references).per_sample,
            "iou": box_iou(boxes, references),
        }
