"""What tasks make of generation: closed sets of answers, limits, decoder prompts, options of an evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from unival import predict
from unival.batch import Batch
from unival.errors import UserError
from unival.evaluate import generate, search_options
from unival.generate import SearchOptions, score_answers
from unival.schema import EvaluationConfig
from unival.tasks.base import Task, get_task

WORDS = ("yes", "no", "a red apple", "a red dog", "blue cup")
QUESTIONS = ["what is left of the cat?", "what is above the dog?", "yes"]


def batch() -> Batch:
    return tiny.image_batch(QUESTIONS, [""] * len(QUESTIONS))


def written(task: Task, num_beams: int = 1, **options: Any) -> list[str]:
    return generate(tiny.model(), tiny.processor(), task, batch().inputs, num_beams, options)


def test_a_free_task_writes_what_generate_writes() -> None:
    task = get_task("vqa")
    settings = {"max_new_tokens": task.max_new_tokens - 1, "min_new_tokens": 1, "suppress_tokens": [1]}
    ids = tiny.model().generate(**batch().inputs, do_sample=False, **settings)
    assert isinstance(ids, torch.Tensor)
    assert written(task) == tiny.processor().decode(ids)


@pytest.mark.parametrize("choose", ["search", "score"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_closed_task_writes_one_of_its_candidates(choose: str, num_beams: int) -> None:
    found = written(get_task("vqa", {"candidates": WORDS, "choose": choose}), num_beams)
    assert len(found) == len(QUESTIONS)
    assert set(found) <= set(WORDS)


def test_both_ways_to_choose_agree_when_the_search_is_wide() -> None:
    search = written(get_task("vqa", {"candidates": list(WORDS)}), len(WORDS))
    assert search == written(get_task("vqa", {"candidates": WORDS, "choose": "score"}))
    answers = [ids[1:-1] for ids in tiny.processor().encode(WORDS)]
    best = score_answers(tiny.model(), batch().inputs, answers).argmax(1)
    assert search == [WORDS[index] for index in best]


def test_entailment_is_yes_no_or_maybe() -> None:
    task = get_task("entailment")
    assert (task.candidates, task.choose) == (("no", "yes", "maybe"), "score")
    assert set(written(task)) <= {"no", "yes", "maybe"}
    assert set(written(get_task("entailment", {"candidates": ["yes", "no"]}))) <= {"yes", "no"}


@pytest.mark.parametrize("choose", ["search", "score"])
def test_a_decoder_prompt_changes_what_follows_and_is_taken_off(choose: str) -> None:
    task = get_task("vqa", {"candidates": WORDS, "choose": choose})
    assert set(written(task, 5, repeat_prompt=True)) <= set(WORDS)
    free = written(get_task("vqa"), repeat_prompt=True, max_len_b=20)
    assert all(not text.startswith(question) for text, question in zip(free, QUESTIONS, strict=True))


def test_settings_of_a_search_come_from_the_task_and_can_be_replaced() -> None:
    inputs = {"input_ids": torch.zeros(1, 7, dtype=torch.long)}
    grounding = get_task("grounding")
    assert search_options(grounding, [], inputs, 5, {}) == SearchOptions(beam=5, min_len=4, max_len_b=4)
    changed = search_options(grounding, [], inputs, 1, {"constraint_range": "5,9", "beam": 2})
    assert changed == SearchOptions(beam=2, min_len=4, max_len_b=4, constraint_range=(5, 9))
    closed = search_options(get_task("vqa"), [[5], [5, 6, 7]], inputs, 3, {"repeat_prompt": True})
    assert closed == SearchOptions(beam=3, max_len_b=10, unnormalized=True, repeat_prompt=True)
    with pytest.raises(UserError, match="unknown search option 'no_repeat'"):
        search_options(grounding, [], inputs, 5, {"no_repeat": 3})


def test_an_evaluation_carries_options_of_its_search() -> None:
    fields = {"name": "a", "task": "vqa", "source": {"world": "test"}}
    assert EvaluationConfig.model_validate(fields).search == {}
    config = EvaluationConfig.model_validate(fields | {"search": {"no_repeat_ngram_size": 3}})
    assert config.search == {"no_repeat_ngram_size": 3}


def test_a_pipeline_can_be_told_what_may_be_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "load", lambda path, device: (tiny.model(), tiny.processor()))
    ask = predict.pipeline("vqa", Path("anywhere"), candidates=["blue cup", "yes"])
    answers = ask([tiny.picture(seed) for seed in range(3)], "what is left of the cat?")
    assert {answer["prediction"] for answer in answers} <= {"blue cup", "yes"}


@pytest.mark.parametrize(("candidates", "message"), [([], "candidates"), (["yes", " "], r"candidates\.1")])
def test_an_empty_set_or_answer_is_refused(candidates: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"task_args.{message}.*at least 1"):
        get_task("vqa", {"candidates": candidates})
