"""Prompts, clean-ups and targets as in the original (specification 3.4, 4.1 to 4.10), and the options that differ."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny
from unival.batch import Example
from unival.errors import UserError
from unival.metrics import java_scores
from unival.metrics.cider import DocumentFrequencies
from unival.metrics.score import Score, mean_score
from unival.tasks.base import get_task

ROW: dict[str, Any] = {"uid": "1", "image": "a.png", "video": "a.mp4", "audio": "a.wav", "width": 640, "height": 320}


def made(name: str, record: dict[str, Any], **args: Any) -> tuple[str, str]:
    example = get_task(name, args).example(ROW | record)
    return example.prompt, example.target


# ------------------------------------------------------------------------------------------------------------ wordings
def test_captions_lose_punctuation_and_keep_case_in_fine_tuning() -> None:
    text = "  A man, in a T-shirt; he isn't alone!  "
    assert made("caption", {"caption": text})[1] == "A man in a Tshirt he isnt alone"
    assert made("caption", {"caption": text}, wording="pretrain")[1] == "a man, in a t shirt; he isn't alone!"
    assert made("caption", {"caption": text, "as_written": True})[1] == text


def test_captions_are_cut_after_words_not_tokens() -> None:
    text = " ".join(f"Word{i}." for i in range(40))
    assert made("caption", {"caption": text})[1].split() == [f"Word{i}" for i in range(20)]
    assert made("caption", {"caption": text}, wording="pretrain")[1].split() == [f"word{i}." for i in range(30)]


def test_fine_tuning_asks_about_the_video_of_a_sound_unless_corrected() -> None:
    sound = {"caption": "a dog barks"}
    assert made("caption", sound, modality="audio")[0] == "what does the video describe?"
    assert made("caption", sound, modality="audio", corrected=True)[0] == "what does the audio describe?"
    assert made("caption", sound, modality="audio", wording="pretrain")[0] == "what does the audio describe?"
    assert made("caption", sound, modality="video")[0] == "what does the video describe?"
    assert made("caption", sound)[0] == "what does the image describe?"


@pytest.mark.parametrize(
    ("question", "finetune", "pretrain"),
    [
        ("What is IT?", "what is it?", "what is it?"),
        ("?!what's  this/that-thing", "what's this that thing?", "what's this that thing"),
        ("is it red\n", "is it red?", "is it red"),
    ],
)
def test_questions_get_a_question_mark_in_fine_tuning_only(question: str, finetune: str, pretrain: str) -> None:
    record = {"question": question, "answers": ["Yes"]}
    assert made("vqa", record) == (finetune, "Yes")
    assert made("vqa", record, wording="pretrain") == (pretrain, "Yes")
    assert made("vqa", record, modality="audio")[0] == finetune
    assert made("vqa", record | {"as_written": True})[0] == question


def test_objects_may_follow_a_question() -> None:
    record = {"question": "what is it", "answers": ["cat"], "objects": ["red cat", *["dog"] * 40]}
    assert made("vqa", record, add_objects=True)[0] == "what is it? object: red cat" + " dog" * 28


def test_the_most_confident_answer_is_the_target_and_confidences_are_the_score() -> None:
    record = {"question": "why?", "answers": ["maybe", "yes", "no"], "confidences": [0.3, 1.0, 1.0]}
    assert made("vqa", record)[1] == "yes"
    scores = get_task("vqa").score(["no", "maybe", "Yes"], [record] * 3)
    assert scores["accuracy"].tolist() == [1.0, 0.3, 0.0]
    plain = {"question": "why?", "answers": ["no"] * 10}
    mixed = get_task("vqa").score(["maybe", "no", "yes"], [record, plain, plain])
    assert mixed["accuracy"].tolist() == [0.3, 1.0, 0.0]
    assert not get_task("vqa").is_labelled({"question": "why?", "answers": []})


@pytest.mark.parametrize(("task", "prompt"), [("caption", "what is {foo}?"), ("vqa", "{question} {0}"), ("vqa", "{")])
def test_a_prompt_that_cannot_be_filled_in_is_refused(task: str, prompt: str) -> None:
    with pytest.raises(UserError, match=r"task_args\.prompt: .* cannot be filled in"):
        get_task(task, {"prompt": prompt})
    assert get_task("vqa", {"prompt": "{{q}} {question}"})


def test_a_box_is_quantised_on_a_picture_squashed_to_512_pixels() -> None:
    record = {"text": "The red-apple", "box": [10, 20, 320, 300]}
    prompt, target = made("grounding", record, num_bins=1000)
    assert prompt == 'which region does the text " the red apple " describe?'
    x, y = 512 / 640, 512 / 320
    expected = [round(c * r / 512 * 999) for c, r in zip(record["box"], (x, y, x, y), strict=True)]
    assert target == "".join(f"<bin_{b}>" for b in expected)
    assert made("grounded_caption", record, num_bins=1000) == (
        f" what does the region describe? region: {target}",
        "the red apple",
    )


@pytest.mark.parametrize(
    ("label", "target"), [("entailment", "yes"), ("contradiction", "no"), ("neutral", "maybe"), ("maybe", "maybe")]
)
def test_entailment(label: str, target: str) -> None:
    record = {"text": "A dog-walker.", "premise": "Two ANIMALS", "label": label}
    assert made("entailment", record) == ('does the image describe " a dog walker. "?', target)
    assert made("entailment", record, add_caption=True) == (
        'can image and text1 " two animals " imply text2 " a dog walker. "?',
        target,
    )
    assert get_task("entailment").score([target], [record])["accuracy"].tolist() == [1.0]


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(UserError, match=r"label is 'perhaps'.*record 1.*neutral"):
        made("entailment", {"text": "a", "label": "perhaps"})


def test_text_to_image_writes_codes_from_64_words_without_a_medium() -> None:
    example = get_task("text_to_image").example({"uid": "1", "caption": "A  dog " + "x " * 80, "codes": [3, 11]})
    assert example.prompt == "what is the complete image? caption: A dog" + " x" * 62
    assert (example.target, example.modality, example.writes_codes) == ("<code_3><code_11>", "text", True)
    task = get_task("text_to_image")
    assert task.parse("<code_3> <code_11>", {}) == [3, 11]
    assert task.score([[3, 11], [3]], [{"codes": [3, 12]}, {"codes": [3, 12]}])["codes"].tolist() == [0.5, 0.5]
    assert task.score([[1]], [{"uid": "1"}]) == {}


# ----------------------------------------------------------------------------------------------------- second examples
@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "captions.txt").write_text("a blue bird\na green frog\n")
    (tmp_path / "objects.txt").write_text("bird\nfrog\nfox\n")
    (tmp_path / "types.json").write_text(json.dumps({"how many": ["1", "2", "9"], "other": ["tree", "house", "sea"]}))
    return {path.stem: str(path) for path in tmp_path.iterdir()}


def test_matching_asks_about_the_caption_or_a_wrong_one_half_of_the_time(files: dict[str, str]) -> None:
    task = get_task("matching", {"captions_file": files["captions"], "objects_file": files["objects"]})
    drawn = Counter()
    for index in range(400):
        record = ROW | {"uid": str(index), "captions": ["A red Cat."], "objects": ["Cat"]}
        example = task.example(record)
        assert example == task.example(record)  # whatever was drawn before
        drawn[example.prompt, example.target] += 1
    right = ('does the image describe " a red cat. "?', "yes")
    replaced = {(f'does the image describe " a red {thing}. "?', "no") for thing in ("bird", "frog")}
    others = {(f'does the image describe " {text} "?', "no") for text in ("a blue bird", "a green frog")}
    assert set(drawn) == {right} | replaced | others  # the last object only stands in for the very one, as originally
    assert drawn[right] == pytest.approx(200, abs=40)
    assert sum(drawn[key] for key in replaced) == pytest.approx(80, abs=30)


def test_another_epoch_draws_again(files: dict[str, str]) -> None:
    task = get_task("matching", {"captions_file": files["captions"]})
    record = ROW | {"captions": ["a red cat"]}
    assert len({task.example(record | {"epoch": epoch}).prompt for epoch in range(20)}) == 3


def test_matching_says_what_it_needs() -> None:
    task, rows = get_task("matching"), [ROW | {"uid": str(index), "captions": ["a cat"]} for index in range(20)]
    with pytest.raises(UserError, match="captions_file"):
        list(map(task.example, rows))
    with pytest.raises(UserError, match=r"no `captions`.*record 1"):
        get_task("matching").example(ROW)
    assert made("matching", {"text": "A cat", "label": "no"}, modality="audio") == (
        'does the audio describe " a cat "?',
        "no",
    )


def test_answer_verification_draws_wrong_answers_of_the_same_type(files: dict[str, str]) -> None:
    task = get_task("answer_verification", {"answer_types_file": files["types"]})
    answers = Counter()
    for index in range(400):
        example = task.example(ROW | {"uid": str(index), "question": "How many?", "answers": ["2"]})
        assert example.prompt.startswith('what is the answer to question " how many? ". is " ')
        answers[example.prompt.split('"')[3].strip(), example.target] += 1
    assert answers["2", "yes"] == pytest.approx(200, abs=40)
    assert {answer for answer, label in answers if label == "no"} == {"1", "3", "9", "tree", "house"}
    unsure = ROW | {"question": "what?", "answers": ["2"], "confidences": [0.05]}
    drawn = {task.example(unsure | {"uid": str(i)}).prompt.split('"')[3].strip() for i in range(60)}
    assert drawn == {"2", "tree", "house"}


# ------------------------------------------------------------------------------------------------- what collate fills
PROMPT, ANSWER = "what is left of the cat?", "red dog"


@pytest.mark.parametrize("prompt_type", ["none", "src", "prev_output"])
def test_a_prompt_before_the_answer_is_read_and_carries_no_loss(prompt_type: Any) -> None:
    processor = tiny.processor()
    batch = processor.collate(
        [Example("1", PROMPT, ANSWER, prompt_type=prompt_type), Example("2", "yes", "no", prompt_type=prompt_type)]
    )
    question, answer = (processor.encode([text])[0] for text in (PROMPT, ANSWER))
    if prompt_type == "none":
        assert batch.prefix is None
        assert batch.target[0].tolist() == answer[1:]
        return
    before = question if prompt_type == "src" else question[:-1]
    assert batch.prefix is not None
    assert batch.prefix[0].tolist() == before + answer[1:-1]
    assert batch.target[0].tolist() == [1] * (len(before) - 1) + answer[1:]
    written = batch.target[0].ne(1)
    shifted = batch.prefix[0].roll(-1)  # every token that is written is read next
    assert (shifted[written][:-1] == batch.target[0][written][:-1]).all()
    assert batch.prefix.shape == batch.target.shape


def test_unscored_tokens_are_read_but_not_learned() -> None:
    processor = tiny.processor()
    examples = [Example("1", PROMPT, ANSWER, num_unscored=2), Example("2", PROMPT, "no", num_unscored=9)]
    batch = processor.collate(examples)
    ids = processor.encode([ANSWER])[0]
    assert batch.prefix is not None
    assert batch.prefix[0, : len(ids) - 1].tolist() == ids[:-1]
    assert batch.target[0, : len(ids) - 1].tolist() == [1, 1, *ids[3:]]
    assert batch.target[1].ne(1).sum() == 1  # `</s>` always counts
    example = get_task("caption", {"num_unscored": 2}).example(ROW | {"caption": "a cat"})
    assert example.num_unscored == 2


def test_codes_are_written_alone() -> None:
    task = get_task("text_to_image")
    example = task.example({"uid": "1", "caption": "a cat", "codes": [3, 0, 15, 2]})
    batch = tiny.processor().collate([example])
    assert batch.writes_codes
    first = tiny.processor().tokenizer.convert_tokens_to_ids("<code_0>")
    assert batch.target.tolist() == [[first + 3, first, first + 15, first + 2, 2]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match="pictures or texts"):
        tiny.processor().collate([example, Example("2", "a", "b")])


# ---------------------------------------------------------------------------------------------------- further numbers
def test_captions_are_scored_without_punctuation_and_by_given_frequencies(tmp_path: Path) -> None:
    records = [ROW | {"captions": ["A cat, asleep."]}, ROW | {"captions": ["Dogs!"]}]
    task = get_task("caption")
    predictions = [task.parse("A cat asleep!", records[0]), task.parse("Dogs", records[1])]
    assert predictions == ["A cat asleep", "Dogs"]
    assert task.score(predictions, records)["exact"].tolist() == [1.0, 1.0]
    corpus = task.corpus(predictions, records)
    assert corpus["rouge_l"] == pytest.approx(1.0)
    assert set(corpus) == {"cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"}
    assert task.corpus(["a dog", "dogs"], records)["rouge_l"] > 0.5  # case does not count here
    with pytest.raises(UserError, match=r"pip install .unival\[coco-java\]"):  # before any prediction
        get_task("caption", {"java_metrics": ["meteor"]})
    path = tmp_path / "frequencies.json"
    DocumentFrequencies.from_references([["A cat asleep"], ["Dogs"], ["A bird"], ["A frog"]]).save(path)
    other = get_task("caption", {"document_frequencies": str(path)}).score(["A dog asleep", "Dogs"], records)
    assert other["cider_d"][0] != task.score(["A dog asleep", "Dogs"], records)["cider_d"][0]


def test_grounding_by_size_has_both_denominators() -> None:
    task = get_task("grounding", {"by_size": True, "thresholds": [0.5, 0.9]})
    boxes = [[0, 0, 100, 100], [0, 0, 200, 200], [0, 0, 300, 300], [0, 0, 400, 400]]
    records = [ROW | {"box": box} for box in boxes]
    predictions = [boxes[0], None, boxes[2], [0, 0, 400, 300]]
    scores = task.score(predictions, records)
    assert scores["accuracy@0.5"].tolist() == [1, 0, 1, 1]
    assert scores["accuracy@0.9"].tolist() == [1, 0, 1, 0]
    assert scores["accuracy@0.5/small"].tolist() == [1, 0, 0, 0]
    assert scores["accuracy@0.5/medium"].tolist() == [0, 0, 1, 0]
    assert scores["accuracy@0.9/large"].tolist() == [0, 0, 0, 0]
    corpus = task.corpus(predictions, records)
    assert corpus["accuracy@0.5/medium_of_class"] == 0.5
    assert (corpus["accuracy@0.5/large_of_class"], corpus["accuracy@0.9/large_of_class"]) == (1.0, 0.0)
    assert [corpus[f"accuracy@0.5/{size}_count"] for size in ("small", "medium", "large")] == [1, 2, 1]
    total = sum(np.mean(scores[f"accuracy@0.5/{size}"]) for size in ("small", "medium", "large"))
    assert total == pytest.approx(np.mean(scores["accuracy@0.5"]))


def test_meteor_and_spice_join_the_corpus_where_java_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(value: float) -> Callable[..., Score]:
        return lambda predictions, given: seen.append((predictions, given)) or mean_score([value])

    monkeypatch.setattr(java_scores, "check_installed", lambda name: seen.append(name))
    monkeypatch.setattr(java_scores, "meteor", fake(0.25))
    monkeypatch.setattr(java_scores, "spice", fake(0.5))
    task = get_task("caption", {"java_metrics": ["meteor", "spice"]})
    assert seen == ["meteor", "spice"]
    corpus = task.corpus(["a cat"], [ROW | {"captions": ["A cat, asleep."]}])
    assert (corpus["meteor"], corpus["spice"]) == (0.25, 0.5)
    assert seen[2:] == [(["a cat"], [["A cat, asleep."]])] * 2
