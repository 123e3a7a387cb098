"""Open-ended questions about images, videos and sounds (specification 4.3, 4.8).

Record: {"uid": "42", "image": "a.jpg", "question": "What is left of the cat?", "answers": ["dog", "dog", "a dog"]},
what people answered; with "confidences": [1.0, 0.6] the answers are distinct, best first, each with its soft accuracy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from unival.batch import Example
from unival.data.clean import clean_question
from unival.metrics.vqa_accuracy import vqa_accuracy
from unival.tasks.base import Scores, TaskArgs, column, is_clean

MAX_QUESTION_WORDS = 80


class Task(TaskArgs):
    """Answer a question in a few words; a closed set of answers (VQAv2: 3,129) is `candidates` or `candidates_file`.

    Attributes:
        prompt: Holds `{question}`.
        official_references: Treat what people answered as the official script does, which normalises the prediction
            fully and references in part: "two" then never matches "2". For numbers to compare with papers.
        add_objects: Name the first 30 words of the record's `objects` after the question. The original's scripts don't.
    """

    monitor: ClassVar[str] = "accuracy"
    prompt: str = "{question}"
    official_references: bool = False
    add_objects: bool = False

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask the question; the target is the first answer."""
        prompt = self.prompt.format(question=question_text(column(record, "question"), record, self.wording))
        if self.add_objects:
            prompt += " object: " + " ".join(" ".join(record.get("objects", ())).split()[:30])
        return Example(
            uid=record["uid"],
            prompt=prompt,
            target=best_answer(record),
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the answer."""
        return text

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return any(answer.strip() for answer in record.get("answers", ()))

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the VQA accuracy; of records with confidences, that of the very answer, 0 for others."""
        accuracy = np.zeros(len(records))
        official = [index for index, record in enumerate(records) if "confidences" not in record]
        if official:
            answers = [column(records[index], "answers") for index in official]
            asked = [predictions[index] for index in official]
            found = vqa_accuracy(asked, answers, official_references=self.official_references)
            accuracy[official] = found.per_sample
        for index in set(range(len(records))).difference(official):
            record = records[index]
            soft = dict(zip(column(record, "answers"), record["confidences"], strict=True))
            accuracy[index] = soft.get(predictions[index], 0.0)
        return {"accuracy": accuracy}


def best_answer(record: Mapping[str, Any]) -> str:
    """Return the answer to learn: the most confident one, of equal ones the first; "" without answers."""
    answers = record.get("answers")
    if not answers:
        return ""
    confidences = record.get("confidences")
    return str(answers[int(np.argmax(confidences))] if confidences else answers[0])


def question_text(question: str, record: Mapping[str, Any], wording: str) -> str:
    """Return a question as the original asks it: lower case, and in fine-tuning always with a question mark."""
    if is_clean(record):
        return question
    cleaned = clean_question(question, MAX_QUESTION_WORDS)
    return cleaned if wording == "pretrain" or cleaned.endswith("?") else f"{cleaned}?"
