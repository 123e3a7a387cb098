"""Grounded captioning, the second example of a grounding row: name the region at four positions (specification 4.10).

Record: as for grounding.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from unival.batch import Example
from unival.metrics.caption_match import exact_match
from unival.model.tokenizer import box_to_text
from unival.tasks.base import Scores, TaskArgs, column


class Task(TaskArgs):
    """Describe the region inside a box."""

    monitor: ClassVar[str] = "exact"
    prompt: str = "what does the region describe? region:"
    num_bins: int = 100

    def example(self, record: Mapping[str, Any]) -> Example:
        """Show the box as position tokens after the prompt; the target is the expression."""
        box = box_to_text(column(record, "box"), column(record, "width"), column(record, "height"), self.num_bins)
        return Example(
            uid=record["uid"],
            prompt=f"{self.prompt} {box}",
            target=record.get("text", ""),
            record=record,
            **self.media(record),
        )

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the expression."""
        return text

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return the exact match."""
        return {"exact": exact_match(predictions, [[column(record, "text")] for record in records]).per_sample}
