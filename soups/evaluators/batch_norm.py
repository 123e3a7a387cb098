"""Score a network with batch norm three ways: its statistics as mixed, as stored, and recomputed on data.

Interpolated statistics are those of no network: a soup's activations have statistics of their own (Jordan et al.
2023, arXiv:2211.08403). Whether a pass over data helps is an empirical matter, so all three are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.batch_norm import is_statistic, recompute
from soups.evaluator import import_function
from soups.state import open_checkpoint

if TYPE_CHECKING:
    import torch

STORED, RECOMPUTED = "stored statistics", "recomputed statistics"


class BatchNormEvaluator:
    """Scores the live weights with three sets of statistics.

    Args:
        model: the module.
        score: called with the module; returns per-sample scores by metric.
        batches: what the statistics are recomputed from; see `soups.batch_norm.recompute`.
        stored: the statistics of the first model, by name.
    """

    def __init__(
        self, model: torch.nn.Module, score: Any, batches: Iterable[Any], stored: Mapping[str, torch.Tensor]
    ) -> None:
        self._model = model.eval()
        self._score = score
        self._batches = batches
        self._stored = stored

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the module."""
        return self._model.state_dict()

    def evaluate(self) -> dict[str, Sequence[float]]:
        """Return each metric, and each followed by the statistics that it was scored with."""
        import torch

        table: dict[str, Sequence[float]] = {}
        with torch.no_grad():
            table |= self._score(self._model)
            state = self._model.state_dict()
            for name, tensor in self._stored.items():
                state[name].copy_(tensor)
            table |= {f"{metric} ({STORED})": scores for metric, scores in self._score(self._model).items()}
            recompute(self._model, self._batches)
            table |= {f"{metric} ({RECOMPUTED})": scores for metric, scores in self._score(self._model).items()}
        return table


def evaluator(checkpoint_path: Path, model: str, score: str, batches: str) -> BatchNormEvaluator:
    """Build the evaluator from the names of functions.

    Args:
        checkpoint_path: the first checkpoint; its statistics are the stored ones.
        model: ``module:function``, called with the checkpoint path; returns the module.
        score: ``module:function``, called with the module; returns ``{metric: [score of each sample]}``.
        batches: ``module:function``, called without arguments; returns batches that can be read more than once.
    """
    with open_checkpoint(checkpoint_path).reader() as read:
        stored = {name: read(name) for name in open_checkpoint(checkpoint_path).infos if is_statistic(name)}
    built = import_function(model, "--arg model")(checkpoint_path)
    data = import_function(batches, "--arg batches")()
    return BatchNormEvaluator(built, import_function(score, "--arg score"), data, stored)
