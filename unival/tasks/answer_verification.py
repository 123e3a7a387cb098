"""Answer verification, the second example of a question row (specification 4.10).

Record: {"uid": "42", "image": "a.jpg", "question": "What is left of the cat?", "answers": ["dog"], "confidences": [1]},
or, with the answer already drawn, with "answer": "horse" and "label": "no".
"""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from unival.batch import Example
from unival.data.answers import read_answer_types
from unival.data.clean import clean_question
from unival.errors import UserError
from unival.tasks.base import Candidates, Scores, TaskArgs, column, generator_for, is_clean
from unival.tasks.matching import another
from unival.tasks.vqa import MAX_QUESTION_WORDS, best_answer


class Task(TaskArgs):
    """Say whether an answer to a question is right: the best one half of the time, otherwise a wrong one.

    A wrong answer is another one of the same question type, or one more or less than a number. What is drawn depends on
    the record's uid, its `epoch` and `seed`.

    Attributes:
        answer_types_file: Answers by question type (the original's `type2ans.json`).
        seed: Of the draws.
    """

    monitor: ClassVar[str] = "accuracy"
    candidates: Candidates | None = ("no", "yes")
    choose: Literal["search", "score"] = "score"
    prompt: str = 'what is the answer to question " {question} ". is " {answer} "?'
    answer_types_file: str | None = None
    seed: int = 0

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask whether the answer, or a wrong one, is right."""
        answer, label = self.answer(record)
        question = column(record, "question")
        question = question if is_clean(record) else clean_question(question, MAX_QUESTION_WORDS)
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(question=question, answer=answer),
            target=label,
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def answer(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the answer to ask about and whether it is right, "yes" or "no" ("" when unknown).

        Raises:
            UserError: If the record has no answer, or a wrong one is to be drawn and there is nothing to draw from.
        """
        if "answer" in record:
            return record["answer"], record.get("label", "")
        right = best_answer(record)
        if not right:
            raise UserError("no `answers` or `answer` to ask about", where=f"record {record.get('uid')}")
        rng = generator_for(record, self.seed, "answer_verification")
        if rng.random() >= 0.5:
            return right, "yes"
        confidences = record.get("confidences")
        return self.wrong_answer(right, max(confidences) if confidences else 1.0, rng), "no"

    def wrong_answer(self, right: str, confidence: float, rng: random.Random) -> str:
        """Draw a wrong answer: of the right one's type where it is certain enough, else of type "other"."""
        if self.answer_types_file is None:
            fix = "give `answer_types_file`, or rows with `answer` and `label`"
            raise UserError("nothing to draw wrong answers from", where="task answer_verification", fix=fix)
        types = read_answer_types(self.answer_types_file)
        kind = types_by_answer(self.answer_types_file).get(right)
        draw = rng.random()
        if kind is None or confidence <= draw + 0.1:
            return another(types["other"], right, rng)
        if kind == "how many" and right.isdigit() and draw > 0.5:
            return str(int(right) + rng.choice((-1, 1)))  # 0 may become -1, as in the original
        return another(types[kind], right, rng)

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return "yes" or "no"."""
        return text

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return bool(record.get("label")) or "answer" not in record

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the accuracy."""
        labels = [self.answer(record)[1] for record in records]
        return {"accuracy": np.array([float(p == label) for p, label in zip(predictions, labels, strict=True)])}


@lru_cache(maxsize=4)
def types_by_answer(path: str) -> dict[str, str]:
    """Return the question type of each answer of a file; of several types the last one counts."""
    return {answer: kind for kind, answers in read_answer_types(path).items() for answer in answers}
