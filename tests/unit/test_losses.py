"""Sizes known before a forward pass are those it gives; the choice of precision."""

from typing import Any

import pytest
import torch

from tests import tiny
from unival.errors import UserError
from unival.objectives.base import get_objective
from unival.training.losses import Losses, autocast_dtype, sizes_ahead

OPTIONS: list[dict[str, Any]] = [
    {},
    {"normalise": "example"},
    {"normalise": "batch"},
    {"ignore_prefix": 1},
    {"ignore_eos": True},
    {"drop_worst_ratio": 0.3, "drop_worst_after": 2},
    {"rdrop": 1.0, "ignore_eos": True},
]


@pytest.mark.parametrize("update", [0, 5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sizes_known_ahead_are_those_of_the_losses(options: dict[str, Any], update: int) -> None:
    objective = get_objective("cross_entropy", options, tiny.processor(), lambda: [])
    prompts = ["what does the image describe?", "what is left of the cat?"]
    batches = [tiny.image_batch(prompts, ["a red apple above a cat", "a dog"]), tiny.image_batch(prompts[:1], ["cat"])]
    with torch.no_grad():
        _, sizes, _ = Losses(tiny.model(), objective)(batches, update)
    assert sizes_ahead(objective, [batches], update) == sizes
    assert sizes_ahead(objective, [batches, batches], update) == [2 * size for size in sizes]


def test_an_objective_that_learns_sizes_too_late_is_refused() -> None:
    class Late:
        def size(self, batch: Any, update: int) -> None:
            return None

    with pytest.raises(UserError, match="cannot weigh accumulated passes"):
        sizes_ahead(Late(), [[tiny.image_batch(["what?"], ["cat"])]], 0)  # type: ignore[arg-type]


def test_precision_by_name() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("fp16", cpu) is torch.float16
    assert autocast_dtype("auto", cpu) in (None, torch.bfloat16)
