"""What a study scores: the rows that its splits ask for."""

from typing import Any

from unival.checkpoint import load_model
from unival.soup_evaluator import Parts

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
