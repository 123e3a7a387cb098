"""Grounded captioning, the second example of a grounding row: name the region at four positions (specification 4.10).

Record: as for grounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from unival.batch import Example
from unival.data.clean import clean_caption
from unival.metrics.caption_match import exact_match
from unival.model.tokenizer import box_to_text
from unival.tasks.base import Scores, TaskArgs, column, is_clean

MAX_WORDS = 30


class Task(TaskArgs):
    """Describe the region inside a box.

    Attributes:
        exact_spaces: Put two spaces before the prompt, as the original does, whose checkpoints know it so.
        num_bins: Positions of the tokenizer; see `grounding`.
    """

    monitor: ClassVar[str] = "exact"
    prompt: str = "what does the region describe? region:"
    exact_spaces: bool = True
    num_bins: int = Field(default=100, ge=2)

    def example(self, record: Mapping[str, Any]) -> Example:
        """Show the box as position tokens after the prompt; the target is the expression."""
        box = box_to_text(column(record, "box"), column(record, "width"), column(record, "height"), self.num_bins)
        extra_space = " " if self.exact_spaces and not is_clean(record) else ""
        return Example(
            uid=record["uid"],
            prompt=f"{extra_space}{self.prompt} {box}",  # positions take the space before them
            target=expected(record),
            record=record,
            prompt_type=self.prompt_type,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the expression."""
        return text

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return "text" in record

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the exact match."""
        for record in records:
            column(record, "text")
        return {"exact": exact_match(predictions, [[expected(record)] for record in records]).per_sample}


def expected(record: Mapping[str, Any]) -> str:
    """Return the expression to write; "" when the record has none."""
    text = record.get("text", "")
    return text if is_clean(record) else clean_caption(text, MAX_WORDS)
