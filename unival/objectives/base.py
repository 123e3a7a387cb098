"""The interface between the loop and what it minimises."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from unival.batch import Batch
from unival.errors import UserError, did_you_mean
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.registry import member


@dataclass(slots=True)
class Loss:
    """A loss and what to log.

    Attributes:
        value: Scalar to minimise, a mean over target tokens, samples or sequences.
        logs: Numbers by name; per-task losses are named `loss/<task>`.
        size: How many of them `value` is the mean over. Sums `value * size` of the micro-batches and processes of one
            update add up and are divided by the sum of their sizes; groups of a step are normalised each by itself
            (specification 7.1: `loss_1 / n_1 + loss_2 / n_2`).
    """

    value: Tensor
    logs: dict[str, float] = field(default_factory=dict)
    size: float = 1.0


class Objective(Protocol):
    """Callable on every batch of every step. It keeps no state that a resumed run would miss."""

    def __call__(self, model: UnivalForConditionalGeneration, batch: Batch, update: int = 0) -> Loss:
        """Return the loss of one batch; `update` is the number of updates made so far, 0 in validation."""
        ...


def check_at_least(least: float, **values: float) -> None:
    """Refuse a value below the least one."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"{name} is {value}", fix=f"give at least {least:g}")


def get_objective(
    name: str,
    args: Mapping[str, Any],
    processor: UnivalProcessor | None,
    rows: Callable[[], Sequence[Mapping[str, Any]]],
) -> Objective:
    """Build the objective in `unival/objectives/<name>.py`, or in a file of one's own, with checked arguments.

    Args:
        name, args: From the configuration.
        processor: Belongs to the model; None where the objective is only checked.
        rows: Returns records of the stage's stream, for objectives that need corpus statistics.

    Raises:
        UserError: If there is no such file or its arguments are unknown or missing.
    """
    cls = objective_class(name, args)
    given = {"processor": processor, "rows": rows}
    return cls(**{k: v for k, v in given.items() if k in inspect.signature(cls).parameters}, **args)


def objective_class(name: str, args: Mapping[str, Any]) -> Callable[..., Objective]:
    """Return the class in `unival/objectives/<name>.py`, or in a file of one's own, that takes these arguments.

    Raises:
        UserError: If there is no such file or its arguments are unknown or missing.
    """
    cls = member("unival.objectives", name, "Objective")
    parameters = inspect.signature(cls).parameters
    known = [parameter for parameter in parameters if parameter not in ("processor", "rows")]
    for key in args:
        if key not in known:
            raise UserError(f"objective {name} has no argument {key!r}", fix=did_you_mean(key, known))
    missing = [key for key in known if parameters[key].default is inspect.Parameter.empty and key not in args]
    if missing:
        raise UserError(f"objective {name} needs the argument {missing[0]!r}", fix=f"it takes {', '.join(known)}")
    return cls
