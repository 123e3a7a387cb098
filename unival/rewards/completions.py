"""Every reward in the interface that TRL and `soups` give to rewards of causal language models.

In a study or in `soups sweep` a reward of this package is written as

    {"function": "unival.rewards.completions:reward", "args": {"name": "brevity", "params": {"max_words": 20}}}

The records are the columns of the prompts, with the prompt itself as `prompt`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unival.rewards import get_reward


def reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    name: str,
    params: Mapping[str, Any] | None = None,
    **columns: Sequence[Any],
) -> list[float]:
    """Return one number per completion.

    Args:
        prompts, completions: What was asked and answered.
        name, params: As `get_reward`.
        columns: Further fields of the prompts' records; None is no field.

    Raises:
        UserError: As `get_reward` and the reward itself.
    """
    rows = zip(*columns.values(), strict=True) if columns else [()] * len(prompts)
    records = [
        {key: value for key, value in zip(columns, row, strict=True) if value is not None} | {"prompt": prompt}
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    return get_reward(name, params)(completions, records).tolist()
