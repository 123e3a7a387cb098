"""Open-ended questions about images, videos and sounds (specification 4.3, 4.8).

Record: {"uid": "42", "image": "a.jpg", "question": "what is left of the cat?", "answers": ["dog"],
"question_type": "what"}
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from unival.batch import Example
from unival.metrics.vqa_accuracy import vqa_accuracy
from unival.tasks.base import Scores, TaskArgs, column


class Task(TaskArgs):
    """Answer a question in a few words; `candidates` closes the set of answers (VQAv2: its 3,129 frequent ones)."""

    monitor: ClassVar[str] = "accuracy"
    prompt: str = "{question}"

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask the question; the target is the first answer."""
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(question=column(record, "question")),
            target=record["answers"][0] if record.get("answers") else "",
            record=record,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the answer."""
        return text

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the VQA accuracy (exact match after normalisation when there is one answer)."""
        return {"accuracy": vqa_accuracy(predictions, [column(record, "answers") for record in records]).per_sample}
