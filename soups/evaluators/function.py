"""Score with functions: of a live model (`of_model`), or of a checkpoint on disk (`of_file`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soups.evaluator import import_function

if TYPE_CHECKING:
    import torch

Scores = Mapping[str, Sequence[float]]


class ModelEvaluator:
    """An evaluator made of a module and a function of it.

    Args:
        model: the module; its ``state_dict()`` has the names of the checkpoints.
        score: called with the module in evaluation mode, without gradients; returns per-sample scores by metric.
        samples: called with the module afterwards; returns examples to show.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        score: Callable[[Any], Scores],
        samples: Callable[[Any], Sequence[Mapping[str, str]]] | None = None,
    ) -> None:
        self._model = model
        self._score = score
        self._samples = samples

    def state(self) -> dict[str, torch.Tensor]:
        """Return the live tensors of the module."""
        return self._model.state_dict()

    def evaluate(self) -> Scores:
        """Return the scores of the current weights."""
        import torch

        self._model.eval()
        with torch.no_grad():
            return self._score(self._model)

    def samples(self) -> Sequence[Mapping[str, str]]:
        """Return examples for the weights scored last."""
        import torch

        with torch.no_grad():
            return self._samples(self._model) if self._samples else []


class CheckpointEvaluator:
    """An evaluator made of a function of a path."""

    def __init__(self, score: Callable[..., Scores], args: Mapping[str, Any]) -> None:
        self._score = score
        self._args = args

    def evaluate_checkpoint(self, path: Path) -> Scores:
        """Return the scores of the checkpoint at ``path``."""
        return self._score(path, **self._args)


def of_model(checkpoint_path: Path, model: str, score: str, samples: str | None = None) -> ModelEvaluator:
    """Build an evaluator from the names of functions.

    Args:
        checkpoint_path: the first checkpoint.
        model: ``module:function``, called with the checkpoint path; returns the module.
        score: ``module:function``, called with the module; returns ``{metric: [score of each sample]}``.
        samples: ``module:function``, called with the module; returns ``[{"prompt": ..., "output": ...}]``.
    """
    show = import_function(samples, "--arg samples") if samples else None
    built = import_function(model, "--arg model")(checkpoint_path)
    return ModelEvaluator(built, import_function(score, "--arg score"), show)


def of_file(checkpoint_path: Path, score: str, **args: Any) -> CheckpointEvaluator:
    """Build an evaluator from the name of one function of a path, such as a script's own ``evaluate(path)``.

    Args:
        checkpoint_path: the first checkpoint.
        score: ``module:function``, called with the folder of a mixture and ``args``; returns
            ``{metric: [score of each sample]}``.
        args: further arguments of the function.
    """
    return CheckpointEvaluator(import_function(score, "--arg score"), args)
