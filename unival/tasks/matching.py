"""Image-text, video-text and sound-text matching, the second example of a caption row (specification 4.10).

Record: {"uid": "7", "image": "a.jpg", "captions": ["A red apple above a cat."], "objects": ["apple", "cat"]}, or, with
the statement already drawn, {"uid": "7", "image": "a.jpg", "text": "a red apple above a dog", "label": "no"}.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from unival.batch import Example
from unival.data.answers import read_answers
from unival.data.clean import clean_caption
from unival.data.fields import given_captions
from unival.errors import UserError
from unival.tasks.base import Candidates, Scores, TaskArgs, generator_for, is_clean

MAX_WORDS = 80
OBJECT_DRAW = 0.6  # above it a wrong caption is the right one with another object


class Task(TaskArgs):
    """Say whether a caption is the medium's: its own half of the time, otherwise a wrong one.

    A wrong caption is the right one with one of the record's `objects` replaced (4 of 10 times, if it has any), or a
    random other caption. What is drawn depends on the record's uid, its `epoch` and `seed`, so a resumed or sharded
    run draws the same.

    Attributes:
        captions_file: Captions to draw from, one per line (the original's `all_captions.txt`).
        objects_file: Object names to draw from (the original's `object.txt`).
        seed: Of the draws.
    """

    monitor: ClassVar[str] = "accuracy"
    candidates: Candidates | None = ("no", "yes")
    choose: Literal["search", "score"] = "score"
    prompt: str = 'does the {modality} describe " {text} "?'
    captions_file: str | None = None
    objects_file: str | None = None
    seed: int = 0

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask about the caption or a wrong one."""
        text, label = self.statement(record)
        text = text if is_clean(record) else clean_caption(text, MAX_WORDS)
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(modality=self.modality, text=text),
            target=label,
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def statement(self, record: Mapping[str, Any]) -> tuple[str, str]:
        """Return the caption to ask about and whether it is the right one, "yes" or "no" ("" when unknown).

        Raises:
            UserError: If the record has no caption, or a wrong one is to be drawn and there is nothing to draw from.
        """
        if "text" in record:
            return record["text"], record.get("label", "")
        captions = given_captions(record)
        if not captions:
            raise UserError("no `captions`, `caption` or `text` to ask about", where=f"record {record.get('uid')}")
        rng = generator_for(record, self.seed, "matching")
        if rng.random() >= 0.5:
            return captions[0], "yes"
        return self.wrong_caption(captions[0], list(record.get("objects") or ()), rng), "no"

    def wrong_caption(self, caption: str, objects: Sequence[str], rng: random.Random) -> str:
        """Draw a caption of something else."""
        draw = rng.random()
        if objects and draw > OBJECT_DRAW and self.objects_file is not None:
            thing = rng.choice(objects)
            return caption.replace(thing, another(read_answers(self.objects_file), thing, rng))
        if self.captions_file is None:
            fix = "give `captions_file`, one caption per line, or rows with `text` and `label`"
            raise UserError("matching has no captions to draw wrong ones from", where="task matching", fix=fix)
        return rng.choice(read_answers(self.captions_file))

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return "yes" or "no"."""
        return text

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return bool(record.get("label")) or "text" not in record

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the accuracy."""
        labels = [self.statement(record)[1] for record in records]
        return {"accuracy": np.array([float(p == label) for p, label in zip(predictions, labels, strict=True)])}


def another(choices: Sequence[str], than: str, rng: random.Random) -> str:
    """Draw a choice; the last one stands in for the very one that it must not be, as in the original."""
    drawn = rng.choice(choices[:-1] or choices)
    return choices[-1] if drawn == than else drawn
