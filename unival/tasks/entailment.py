"""Visual entailment: does the medium support a statement? (specification 4.5).

Record: {"uid": "9", "image": "a.jpg", "text": "A cat is above a dog.", "label": "yes", "premise": "two animals"};
labels are "yes", "no", "maybe", or SNLI-VE's "entailment", "contradiction", "neutral".
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from unival.batch import Example
from unival.data.clean import clean_caption
from unival.errors import UserError
from unival.tasks.base import Candidates, Scores, TaskArgs, column, is_clean

MAX_WORDS = 80
LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe"}


class Task(TaskArgs):
    """Answer yes, no or maybe, whichever is the most probable of the three (specification 8.4).

    Attributes:
        prompt: Holds `{modality}` and `{text}`.
        add_caption: Also show the record's `premise`, the caption that the statement was written for.
        caption_prompt: The prompt then.
    """

    monitor: ClassVar[str] = "accuracy"
    candidates: Candidates | None = ("no", "yes", "maybe")
    choose: Literal["search", "score"] = "score"
    prompt: str = 'does the {modality} describe " {text} "?'
    add_caption: bool = False
    caption_prompt: str = 'can {modality} and text1 " {premise} " imply text2 " {text} "?'

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask whether the statement holds."""
        fields = {"modality": self.modality, "text": statement(record, "text")}
        if self.add_caption:
            prompt = self.caption_prompt.format(**fields, premise=statement(record, "premise"))
        else:
            prompt = self.prompt.format(**fields)
        return Example(
            uid=record["uid"],
            prompt=prompt,
            target=label_of(record) if "label" in record else "",
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the label."""
        return text

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return "label" in record

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the accuracy."""
        pairs = zip(predictions, records, strict=True)
        return {"accuracy": np.array([float(p == label_of(record)) for p, record in pairs])}


def statement(record: Mapping[str, Any], name: str) -> str:
    """Return a text column as the original writes it."""
    text = column(record, name)
    return text if is_clean(record) else clean_caption(text, MAX_WORDS)


def label_of(record: Mapping[str, Any]) -> str:
    """Return "yes", "no" or "maybe".

    Raises:
        UserError: If the record has no label, or one that is none of the words.
    """
    label = str(column(record, "label"))
    answer = LABELS.get(label, label)
    if answer not in LABELS.values():
        words = ", ".join([*LABELS.values(), *LABELS])
        raise UserError(f"label is {label!r}", where=f"record {record.get('uid')}", fix=f"one of {words}")
    return answer
