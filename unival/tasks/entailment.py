"""Visual entailment and image-text matching: does the medium support a statement? (specification 4.5, 4.10).

Record: {"uid": "9", "image": "a.jpg", "text": "a cat is above a dog", "label": "yes"}; labels are "yes", "no" and,
for entailment, "maybe". Matching is the same question about a true or a corrupted caption.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from unival.batch import Example
from unival.tasks.base import Candidates, Scores, TaskArgs, column


class Task(TaskArgs):
    """Answer yes, no or maybe, whichever is the most probable of the three (specification 8.4)."""

    monitor: ClassVar[str] = "accuracy"
    candidates: Candidates | None = ("no", "yes", "maybe")
    choose: Literal["search", "score"] = "score"
    prompt: str = 'does the {modality} describe " {text} "?'

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask whether the statement holds."""
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(modality=self.modality, text=column(record, "text")),
            target=record.get("label", ""),
            record=record,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the label."""
        return text

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the accuracy."""
        pairs = zip(predictions, records, strict=True)
        return {"accuracy": np.array([float(p == column(record, "label")) for p, record in pairs])}
