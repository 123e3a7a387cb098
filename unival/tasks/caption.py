"""Captioning of images, videos and sounds (specification 4.2, 4.7, 4.9).

Record: {"uid": "7", "image": "a.jpg", "captions": ["a red apple above a cat"], "objects": ["red apple", "cat"]}
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from unival.batch import Example
from unival.metrics.caption_match import exact_match, name_precision, name_recall
from unival.metrics.cider import cider_d
from unival.tasks.base import Scores, TaskArgs


class Task(TaskArgs):
    """Describe a medium. `prompt` holds `{modality}`."""

    monitor: ClassVar[str] = "cider_d"
    prompt: str = "what does the {modality} describe?"

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask for a description; the target is the first reference."""
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(modality=self.modality),
            target=references(record)[0] if references(record) else "",
            record=record,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the caption."""
        return text

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return CIDEr-D (0 to 10), exact match, and for records with `objects` whether exactly those are named."""
        refs = [references(record) for record in records]
        scores = {
            "cider_d": cider_d(predictions, refs).per_sample,
            "exact": exact_match(predictions, refs).per_sample,
        }
        if all("objects" in record for record in records):
            vocabulary = frozenset(name for record in records for name in record["objects"])
            pairs = [(p, r["objects"]) for p, r in zip(predictions, records, strict=True)]
            scores["names"] = np.array(
                [float(name_recall(p, o, vocabulary) == 1 and name_precision(p, o, vocabulary) == 1) for p, o in pairs]
            )
        return scores


def references(record: Mapping[str, Any]) -> list[str]:
    """Return the reference captions of a record."""
    return list(record["captions"]) if "captions" in record else [record["caption"]] if "caption" in record else []
