"""What a study scores: the rows that its splits ask for."""

from typing import Any

import pytest

from tests import tiny
from unival.checkpoint import load_model
from unival.errors import UserError
from unival.soup_evaluator import Ensemble, Evaluator, Parts
from unival.tasks.base import TaskArgs

PARTS = {
    "clips": {"task": "caption", "task_args": {"modality": "video"}, "metrics": ["cider_d"]},
    "sounds": {"task": "caption", "task_args": {"modality": "audio"}, "metrics": ["cider_d"]},
}


def test_style_and_options_of_a_split_reach_clips_and_leave_sounds_alone() -> None:
    processor = load_model("unival-tiny")[1]

    def records(**changes: Any) -> dict[str, list[Any]]:
        given = {"split": "test", "styles": (), "options": {}, "limit": 4, "batch_size": 2} | changes
        return {part.name: part.records for part in Parts(processor, PARTS, **given).parts}

    usual, unseen, single = records(), records(styles=["twemoji"]), records(options={"max_objects": 1})
    for a, b in zip(usual["clips"], unseen["clips"], strict=True):
        assert a["caption"] == b["caption"]
        assert a["video"] != b["video"]
    assert any(" and " in record["caption"] for record in usual["clips"])
    assert not any(" and " in record["caption"] for record in single["clips"])
    for found in (unseen, single):
        assert [record["uid"] for record in found["sounds"]] == [record["uid"] for record in usual["sounds"]]


@pytest.mark.parametrize("limit", [1, 2, 6])
def test_an_ensemble_of_a_model_with_itself_writes_what_the_model_writes(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskArgs, "max_new_tokens", limit)
    monkeypatch.setattr(TaskArgs, "min_new_tokens", 0)
    model, processor = tiny.model(), tiny.processor()
    parts = Parts(processor, {"": {"task": "caption", "metrics": ["exact"]}}, "test", (), {}, limit=6, batch_size=3)
    Evaluator(model, processor, parts).evaluate()
    alone = parts.texts
    Ensemble([model, model], processor, parts).evaluate([0.5, 0.5])
    assert parts.texts == alone
    assert any(alone[0]) == (limit > 1)


def test_no_ensemble_where_a_task_is_not_free_text() -> None:
    part = {"task": "caption", "task_args": {"prompt_type": "prev_output"}, "metrics": ["exact"]}
    parts = Parts(tiny.processor(), {"own": part}, "test", (), {}, limit=1, batch_size=1)
    with pytest.raises(UserError, match="no ensemble of 'own'"):
        Ensemble([tiny.model()], tiny.processor(), parts).evaluate([1.0])
