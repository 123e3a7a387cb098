"""Tasks: prompts as the specification words them, targets, parsing and scores; every file of the folder."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import unival.tasks
from unival.errors import UserError
from unival.model.tokenizer import box_to_text
from unival.tasks import PREDICT_TASKS
from unival.tasks.base import get_task, task_names

# One record with every column, so that a new task that reads some of them is tested without an edit.
RECORD: dict[str, Any] = {
    "uid": "7",
    "media_id": "m7",
    "image": "a.png",
    "video": "a.mp4",
    "audio": "a.wav",
    "captions": ["a red apple above a cat", "an apple and a cat"],
    "objects": ["red apple", "cat"],
    "question": "what is above the cat?",
    "answers": ["red apple"],
    "question_type": "what",
    "text": "the red apple",
    "label": "yes",
    "box": [0.0, 24.0, 48.0, 96.0],
    "width": 96,
    "height": 96,
    "answer": "red apple",
    "codes": [3, 0, 1, 2],
}


def test_the_registry_is_the_folder() -> None:
    folder = Path(unival.tasks.__file__).parent
    assert set(task_names()) == {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert {"caption", "vqa", "grounding", "grounded_caption", "entailment"} <= set(task_names())
    assert {name for name, _ in PREDICT_TASKS.values()} <= set(task_names())


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_every_task_makes_examples_parses_its_own_target_and_scores_it_fully(name: str, modality: str) -> None:
    reads_media = get_task(name).modality != "text"
    task = get_task(name, {"modality": modality} if reads_media else {})
    example = task.example(RECORD)
    assert example.uid == "7"
    if reads_media:
        assert (example.modality, example.media_id) == (modality, "m7")
        assert example.media == RECORD[modality]
    assert example.writes_codes == task.writes_codes
    assert example.target
    assert example.record is RECORD
    parsed = task.parse(example.target, RECORD)
    json.dumps(parsed)
    # CIDEr-D needs more than one document
    other = RECORD | {"captions": ["a blue cup"], "objects": ["blue cup"], "codes": [4, 4, 4, 4]}
    scores = task.score([parsed, task.parse("nonsense", other)], [RECORD, other])
    assert task.monitor in scores
    for metric, values in scores.items():
        assert isinstance(values, np.ndarray), metric
        assert len(values) == 2
        assert values[0] > values[1], metric
    assert 0 < task.min_new_tokens <= task.max_new_tokens


@pytest.mark.parametrize("name", task_names())
def test_every_task_serves_unlabelled_records(name: str) -> None:
    labels = {"captions", "answers", "label", "objects", "codes"} | ({"box"} if name == "grounding" else set())
    unlabelled = {key: value for key, value in RECORD.items() if key not in labels}
    example = get_task(name).example(unlabelled)
    assert example.target == ("the red apple" if name == "grounded_caption" else "")


@pytest.mark.parametrize("name", task_names())
def test_every_task_refuses_unknown_arguments_and_names_its_own(name: str) -> None:
    with pytest.raises(UserError, match=f"task {name} has no argument 'modallity'.*did you mean 'modality'"):
        get_task(name, {"modallity": "image"})
    with pytest.raises(UserError, match=r"task_args\.modality.*'smell'"):
        get_task(name, {"modality": "smell"})


@pytest.mark.parametrize("name", task_names())
def test_every_task_documents_itself(name: str) -> None:
    module = importlib.import_module(f"unival.tasks.{name}")
    assert "Record" in (module.__doc__ or "")


def test_an_unknown_task_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"unknown task 'captoin'.*did you mean 'caption'"):
        get_task("captoin")
    with pytest.raises(UserError, match="unknown task 'base'"):
        get_task("base")


@pytest.mark.parametrize(
    ("name", "modality", "prompt", "target"),
    [
        ("caption", "image", "what does the image describe?", "a red apple above a cat"),
        ("caption", "video", "what does the video describe?", "a red apple above a cat"),
        ("caption", "audio", "what does the video describe?", "a red apple above a cat"),  # as the original's
        ("vqa", "image", "what is above the cat?", "red apple"),
        (
            "grounding",
            "image",
            'which region does the text " the red apple " describe?',
            "<bin_0><bin_25><bin_50><bin_99>",
        ),
        (
            "grounded_caption",
            "image",
            " what does the region describe? region: <bin_0><bin_25><bin_50><bin_99>",
            "the red apple",
        ),
        ("entailment", "image", 'does the image describe " the red apple "?', "yes"),
        ("entailment", "video", 'does the video describe " the red apple "?', "yes"),
    ],
)
def test_prompts_and_targets_are_the_specified_ones(name: str, modality: str, prompt: str, target: str) -> None:
    example = get_task(name, {"modality": modality}).example(RECORD)
    assert (example.prompt, example.target) == (prompt, target)


def test_a_prompt_can_be_replaced_and_text_with_braces_is_text() -> None:
    task = get_task("vqa", {"prompt": "question: {question}"})
    assert task.example(RECORD | {"question": "why {x}?"}).prompt == "question: why {x}?"


def test_a_caption_may_be_a_single_column() -> None:
    record = {"uid": "1", "image": "a.png", "caption": "a cat"}
    task = get_task("caption")
    assert task.example(record).target == "a cat"
    assert task.example(record).media_id == "a.png"  # rows about one file share its features
    found = [task.example(record | {"image": medium}).media_id for medium in (b"one", b"two", b"one")]
    assert found[0] == found[2] != found[1]  # two rows with one uid may have two pictures
    assert task.example(record | {"image": np.zeros((2, 2, 3))}).media_id == "1"
    assert task.score(["a cat"], [record])["exact"].tolist() == [1.0]


def test_caption_scores() -> None:
    records = [
        RECORD,
        RECORD | {"captions": ["a dog"], "objects": ["dog"]},
        RECORD | {"captions": ["a cup"], "objects": ["cup"]},
    ]
    scores = get_task("caption").score(["a red apple above a cat", "a dog and a cup", "a dog"], records)
    assert scores["exact"].tolist() == [1.0, 0.0, 0.0]
    assert scores["names"].tolist() == [1.0, 0.0, 0.0]  # one object too many, a wrong one
    assert scores["cider_d"][0] > scores["cider_d"][1] > scores["cider_d"][2] == 0.0


def test_vqa_scores_by_agreement_of_answers() -> None:
    records = [{"answers": ["cat"]}, {"answers": ["cat"] * 3 + ["dog"] * 7}, {"answers": ["2"]}]
    scores = get_task("vqa").score(["Cat.", "cat", "two"], records)
    assert scores["accuracy"].tolist() == pytest.approx([1.0, 0.9, 1.0])


def test_vqa_normalises_references_as_the_official_script_does_when_asked() -> None:
    records = [{"uid": "1", "question": "how many?", "answers": ["two"] * 6 + ["three"] * 4}]
    assert get_task("vqa").score(["2"], records)["accuracy"].tolist() == [1.0]
    assert get_task("vqa", {"official_references": True}).score(["2"], records)["accuracy"].tolist() == [0.0]


def test_grounding_reads_boxes_back_in_pixels_and_scores_them() -> None:
    task = get_task("grounding")
    record = {"width": 200, "height": 100, "box": [0, 0, 100, 100]}
    box = task.parse("<bin_0><bin_0><bin_99><bin_99>", record)
    assert box == [0.0, 0.0, 200.0, 100.0]
    assert task.parse("<bin_0> a <bin_0>", record) is None
    scores = task.score([box, None, [0, 0, 100, 98]], [record] * 3)
    assert scores["iou"] == pytest.approx([0.5, 0.0, 0.98], abs=1e-4)  # 1e-6 in the denominator, as in the original
    assert scores["accuracy@0.5"].tolist()[1:] == [0.0, 1.0]
    assert (task.min_new_tokens, task.max_new_tokens) == (4, 5)


def test_number_of_position_bins_is_an_argument() -> None:
    task = get_task("grounding", {"num_bins": 1000})
    assert task.example(RECORD).target == "<bin_0><bin_250><bin_500><bin_999>"
    assert task.parse("<bin_999><bin_0><bin_999><bin_0>", RECORD) == [96.0, 0.0, 96.0, 0.0]


def test_entailment_scores_labels() -> None:
    scores = get_task("entailment").score(["yes", "no", "maybe"], [RECORD] * 3)
    assert scores["accuracy"].tolist() == [1.0, 0.0, 0.0]


def test_a_record_without_the_medium_is_refused_with_its_columns() -> None:
    with pytest.raises(UserError, match=r"no column 'video'.*record 3.*uid, image, captions"):
        get_task("caption", {"modality": "video"}).example({"uid": "3", "image": "a.png", "captions": ["a"]})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("vqa", "question"),
        ("grounding", "text"),
        ("grounding", "height"),
        ("grounded_caption", "box"),
        ("entailment", "text"),
    ],
)
def test_a_record_without_a_column_of_the_task_is_refused(name: str, missing: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != missing}
    with pytest.raises(UserError, match=f"no column '{missing}'.*record 7"):
        get_task(name).example(record)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("vqa", "answers"), ("grounding", "box"), ("entailment", "label"), ("grounded_caption", "text")],
)
def test_rows_without_labels_cannot_be_scored(name: str, missing: str) -> None:
    task, record = get_task(name), {key: value for key, value in RECORD.items() if key != missing}
    with pytest.raises(UserError, match=f"no column '{missing}'"):
        task.score([task.parse("yes", RECORD)], [record])


@given(
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    num_bins=st.sampled_from([2, 10, 100, 1000]),
)
def test_boxes_survive_quantisation_to_half_a_bin(corners: list[float], width: int, height: int, num_bins: int) -> None:
    sides = np.array([width, height, width, height])
    box = np.array(corners) * sides
    record = {"width": width, "height": height}
    back = get_task("grounding", {"num_bins": num_bins}).parse(box_to_text(box, width, height, num_bins), record)
    assert np.abs(np.array(back) - box).max() <= 0.5 / (num_bins - 1) * sides.max() * (1 + 1e-9)
