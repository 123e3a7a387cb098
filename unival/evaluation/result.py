"""What an evaluation has found: predictions, scores per sample, and their summary."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unival.metrics.bootstrap import bootstrap_mean
from unival.tasks.base import Scores


@dataclass(slots=True)
class Evaluation:
    """Predictions and per-sample scores of one task on one split; records hold no media.

    `bad` says which media could not be decoded: their predictions are those of an empty text.
    """

    records: list[Mapping[str, Any]]
    predictions: list[Any]
    scores: Scores
    corpus: dict[str, float]
    bad: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Return means with 95 % bootstrap intervals, and means per question type where rows have one."""
        means = {name: bootstrap_mean(s)._asdict() for name, s in self.scores.items()}
        summary: dict[str, Any] = {"samples": len(self.records), "metrics": means}
        if self.corpus:
            summary["corpus"] = self.corpus
        if self.bad:
            summary["bad_rows"] = self.bad
        if "accuracy" in self.scores and all("question_type" in record for record in self.records):
            summary["question_types"] = self._by_type()
        return summary

    def _by_type(self) -> dict[str, dict[str, float]]:
        types = np.array([record["question_type"] for record in self.records])
        table = {}
        for kind in sorted(set(types)):
            answers = Counter(r["answers"][0] for r, t in zip(self.records, types, strict=True) if t == kind)
            total = sum(answers.values())
            table[str(kind)] = {
                "samples": total,
                "accuracy": float(self.scores["accuracy"][types == kind].mean()),
                "most_frequent_answer": answers.most_common(1)[0][1] / total,
            }
        return table
