"""What an objective computes and keeps for an example: one pass over its target, or over several samples."""

from dataclasses import dataclass

from unival.objectives.base import get_objective
from unival.schema import ObjectiveConfig

FORWARD = 1 / 3  # of the arithmetic of a pass forward and backward


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes for one example.

    Attributes:
        repeats: Times that prompt and target are read (R-Drop: twice).
        samples: Sequences that the decoder reads for one prompt, all kept for the backward pass.
        length: Tokens of a sample, at most; None is the target's.
        forward: Passes over the samples without a backward one: they are drawn first.
        supervised: The target is read too.
        has_start: The start model reads the medium, the prompt and the samples.
        columns: Numbers of the output for each token; None is the vocabulary.
    """

    repeats: int = 1
    samples: int = 1
    length: int | None = None
    forward: float = 0.0
    supervised: bool = False
    has_start: bool = False
    columns: int | None = None


def passes_of(config: ObjectiveConfig) -> Passes:
    """Return the passes of an objective; one of your own that draws no samples counts as one pass.

    Raises:
        UserError: If there is no such objective, or its arguments are wrong.
    """
    objective = get_objective(config.name, config.args, None, list)
    chosen = getattr(objective, "constraint_range", None)
    columns = None if chosen is None else chosen[1] - chosen[0] + 5  # the special ones and `</s>` too
    if not hasattr(objective, "draw"):
        return Passes(2 if getattr(objective, "rdrop", 0.0) > 0.0 else 1, columns=columns)
    samples = int(getattr(objective, "samples", 1))
    has_start = getattr(objective, "kl", 0.0) > 0.0
    drawn = 1.0 + bool(getattr(objective, "adds_greedy", False)) / samples
    supervised = getattr(objective, "supervised", 0.0) > 0.0
    length = getattr(objective, "max_new_tokens", None)
    return Passes(1, samples, length, drawn + has_start, supervised, has_start, columns)
