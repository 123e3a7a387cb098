"""Text-to-image: write a picture as the codes of an image codec (specification 4.6).

Record: {"uid": "5", "caption": "a red apple above a cat", "codes": [17, 4063, ...]}, codes row by row;
`unival codec encode` adds them to a manifest of pictures.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from unival.batch import Example
from unival.data.fields import given_captions
from unival.tasks.base import Scores, TaskArgs, is_clean

MAX_WORDS = 64
CODE = re.compile(r"<code_(\d+)>")


class Task(TaskArgs):
    """Write the codes of a picture from its caption; there is no medium in the prompt.

    The model's configuration says how many codes a picture has, so generation takes the lengths from there.

    Attributes:
        prompt: Holds `{caption}`.
    """

    monitor: ClassVar[str] = "codes"
    writes_codes: ClassVar[bool] = True
    modality: Literal["text"] = "text"  # pyright: ignore[reportIncompatibleVariableOverride]  # frozen: never assigned
    prompt: str = "what is the complete image? caption: {caption}"

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask for the picture of a caption; the target is its codes."""
        given = given_captions(record)
        caption = given[0] if given else ""
        if not is_clean(record):
            caption = " ".join(caption.split()[:MAX_WORDS])
        codes = record.get("codes") or ()
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(caption=caption),
            target="".join(f"<code_{code}>" for code in codes),
            record=record,
            writes_codes=True,
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> list[int]:
        """Return the codes."""
        return [int(code) for code in CODE.findall(text)]

    def score(self, predictions: Sequence[Sequence[int]], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the share of codes that are those of the reference picture; nothing when no record has codes.

        FID, Inception Score and CLIP similarity need pictures: `unival.metrics` has them.
        """
        if not any(record.get("codes") for record in records):
            return {}
        pairs = [(list(p), list(r.get("codes") or ())) for p, r in zip(predictions, records, strict=True)]
        return {"codes": np.array([share_equal(predicted, codes) for predicted, codes in pairs])}


def share_equal(predicted: Sequence[int], codes: Sequence[int]) -> float:
    """Return the share of equal places; places that only one side has are unequal."""
    places = max(len(predicted), len(codes))
    return sum(p == c for p, c in zip(predicted, codes, strict=False)) / places if places else 0.0
