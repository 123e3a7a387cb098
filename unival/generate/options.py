"""What a search may be told (specification 8.1 to 8.5)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from unival.errors import UserError, did_you_mean


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The original's search; names and defaults are the original's, so that its `eval_args` can be passed as they are.

    Attributes:
        beam: Hypotheses kept per input; 1 is greedy search. With `sampling`, the number of samples.
        max_len_a, max_len_b: At most `int(max_len_a * L + max_len_b)` tokens come before `</s>`, which is then forced
            and scored. L is the padded length of the prompts, so with `max_len_a` results depend on the batch.
        min_len: `</s>` is not written before this many tokens.
        unnormalized: Hypotheses are compared by log-probability, not by log-probability / length**lenpen.
        lenpen: Exponent of the length, which counts `</s>`.
        unkpen: Taken off the log-probability of `<unk>`.
        temperature: Divides the logits before everything else; scores are those of the scaled distribution.
        no_repeat_ngram_size: No hypothesis holds the same n tokens twice (0: off); `<s>` counts as a token.
        constraint_range: (first, end): only these ids and the four special ones may be written.
        gen_code: Write image codes: two-dimensional positions, and no special token before the last step.
        zero_shot: Answers and ranges restrict the search after the probabilities are normalised, not before.
        repeat_prompt: Hypotheses start with the prompt, as the released checkpoints for questions and entailment were
            trained to (`prompt_type=prev_output`). The lengths above count it.
        sampling: Draw `beam` independent samples instead of searching.
        sampling_topk, sampling_topp: Draw among the k most probable tokens (0: all), or the most probable ones whose
            sum reaches p. Scores stay those of the whole distribution.
    """

    beam: int = 5
    max_len_a: float = 0.0
    max_len_b: int = 200
    min_len: int = 1
    unnormalized: bool = False
    lenpen: float = 1.0
    unkpen: float = 0.0
    temperature: float = 1.0
    no_repeat_ngram_size: int = 0
    constraint_range: tuple[int, int] | None = None
    gen_code: bool = False
    zero_shot: bool = False
    repeat_prompt: bool = False
    sampling: bool = False
    sampling_topk: int = 0
    sampling_topp: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("beam", 1), ("min_len", 0), ("no_repeat_ngram_size", 0), ("sampling_topk", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}", "search options", f"the least is {least}")
        if not 0.0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}", "search options", "give a positive number")
        for name in ("max_len_a", "lenpen", "unkpen"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}", "search options", "give a finite number")
        if not 0.0 < self.sampling_topp <= 1.0:
            raise UserError(f"sampling_topp is {self.sampling_topp}", "search options", "give 0 < p <= 1")
        if self.constraint_range is not None and not 0 <= self.constraint_range[0] < self.constraint_range[1]:
            first, end = self.constraint_range
            raise UserError(f"constraint_range is {first}, {end}", "search options", "give 0 <= first < end")

    @classmethod
    def from_original(cls, eval_args: Mapping[str, Any]) -> "SearchOptions":
        """Read the original's `eval_args`, for example `{"beam": 5, "max_len_b": 22, "no_repeat_ngram_size": 3}`.

        `constraint_range` may be the original's text "first,end". `stop_on_max_len` is dropped: it decides whether a
        sentence without any hypothesis fails an assertion; here such a sentence has an empty list.

        Raises:
            UserError: If an option is unknown.
        """
        names = [field.name for field in fields(cls)]
        given = {name: value for name, value in eval_args.items() if name != "stop_on_max_len"}
        for name in given:
            if name not in names:
                raise UserError(f"unknown search option {name!r}", fix=did_you_mean(name, names))
        if given.get("constraint_range") is not None:
            given["constraint_range"] = _range(given["constraint_range"])
        return cls(**given)

    def max_len(self, prompt_length: int) -> int:
        """Return how many tokens may come before `</s>` for prompts padded to `prompt_length`."""
        return int(self.max_len_a * prompt_length + self.max_len_b)


def _range(bounds: Any) -> tuple[int, int]:
    """Read "first,end" or two numbers."""
    parts = bounds.split(",") if isinstance(bounds, str) else list(bounds)
    try:
        first, end = map(int, parts)
    except (TypeError, ValueError):
        raise UserError(f"constraint_range is {bounds!r}", "search options", 'give "first,end"') from None
    return first, end
