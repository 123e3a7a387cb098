import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unival.errors import UserError
from unival.metrics.bleu import bleu
from unival.metrics.cider import CiderD
from unival.metrics.rouge import rouge_l
from unival.objectives._scoring import text_fields
from unival.rewards import REWARDS, check_rewards, fit_cider, fit_vocabulary, get_reward, weighted_reward

RECORDS: list[dict[str, Any]] = [
    {
        "uid": "1",
        "captions": ["a cat face on a mat", "a cat face"],
        "objects": ["cat face", "mat"],
        "answers": ["cat"] * 3 + ["dog"] * 7,
        "box": [0, 0, 10, 10],
    },
    {
        "uid": "2",
        "caption": "a dog runs under the sun",
        "objects": ["dog", "sun", "cat"],
        "answers": ["two"],
        "box": [0, 0, 400, 400],
    },
]
REFERENCES = [["a cat face on a mat", "a cat face"], ["a dog runs under the sun"]]
PREDICTIONS = ["a cat on a mat", "a dog runs under the moon"]
PLAIN = sorted(REWARDS.keys() - {"meteor", "sentence_similarity", "relevance", "clip_score"})  # they need no files


def score(name: str, predictions: Sequence[str], params: dict[str, Any] | None = None) -> list[float]:
    rewards = get_reward(name, params, records=RECORDS)(predictions, RECORDS)
    assert rewards.dtype == np.float64
    assert rewards.shape == (2,)
    return rewards.tolist()


def test_caption_rewards_are_the_per_sample_metrics() -> None:
    assert score("cider_d", PREDICTIONS) == CiderD(REFERENCES).score(PREDICTIONS).tolist()
    assert score("rouge_l", PREDICTIONS) == rouge_l(PREDICTIONS, REFERENCES).per_sample.tolist()
    for name in ("bleu1", "bleu4"):
        assert score(name, PREDICTIONS) == bleu(PREDICTIONS, REFERENCES)[name].per_sample.tolist()
    assert score("exact_match", ["a cat face", "a dog"]) == [1, 0]


def test_cider_d_keeps_its_document_frequencies_on_other_batches() -> None:
    reward = get_reward("cider_d", {"cider": fit_cider(RECORDS)})
    assert reward(PREDICTIONS[1:], RECORDS[1:])[0] == reward(PREDICTIONS, RECORDS)[1] > 0


def test_naming_rewards_know_the_names_of_all_records() -> None:
    assert fit_vocabulary(RECORDS) == {"cat face", "mat", "dog", "sun", "cat"}
    assert score("name_recall", ["a cat face", "a cat face and a dog"]) == pytest.approx([1 / 2, 1 / 3])
    assert score("name_precision", ["a cat face and a dog", "a sun"]) == [0.5, 1]
    assert score("name_recall", ["cat", "cat face"], {"vocabulary": []}) == pytest.approx([0, 1 / 3])


@pytest.mark.parametrize(("num_words", "expected"), [(0, 0), (1, 1), (4, 1), (6, 0.75), (8, 0.5), (12, 0), (40, 0)])
def test_brevity_falls_linearly_between_its_bounds(num_words: int, expected: float) -> None:
    reward = get_reward("brevity", {"min_words": 4, "max_words": 12})
    assert reward(["word " * num_words], [{}]).tolist() == [expected]


@pytest.mark.parametrize(("num_words", "expected"), [(0, 0), (4, 0.5), (8, 1), (12, 0.5), (16, 0), (40, 0)])
def test_length_falls_on_both_sides_of_its_target(num_words: int, expected: float) -> None:
    assert get_reward("length", {"words": 8})(["word " * num_words], [{}]).tolist() == [expected]


def test_answer_bleu1_averages_over_the_answers() -> None:
    expected = [
        np.mean([bleu([text], [[answer]])["bleu1"].value for answer in record["answers"]])
        for text, record in zip(["a dog", "two"], RECORDS, strict=True)
    ]
    assert score("answer_bleu1", ["a dog", "two"]) == pytest.approx(expected)
    assert expected[0] == pytest.approx(0.7 * 0.5, abs=1e-6)


def test_box_rewards_read_position_tokens_of_pictures_with_a_size() -> None:
    record = {"box": [0, 0, 50, 100], "width": 100, "height": 100}
    reward = get_reward("iou", given={"num_bins": 11})
    texts = ["<bin_0><bin_0><bin_5><bin_10>", "<bin_0><bin_0><bin_10><bin_10>", "<bin_0>", "a cat"]
    assert reward(texts, [record] * 4) == pytest.approx([1, 0.5, 0, 0])
    with pytest.raises(UserError, match="record has no 'width'"):
        reward(texts[:1], [{"box": [0, 0, 50, 100]}])


def test_box_rewards_read_text_and_respect_sizes() -> None:
    predictions = ["0,0,10,10", "[0, 0, 400, 100]"]
    assert score("iou", predictions) == pytest.approx([1, 0.25], abs=1e-7)  # + 1e-6 in a denominator of 100
    assert score("box_accuracy", predictions) == [1, 0]
    assert score("box_accuracy", predictions, {"threshold": 0.2}) == [1, 1]
    assert score("box_accuracy", predictions, {"threshold": 0.2, "size": "large"}) == [0, 1]
    assert score("iou", predictions, {"size": "small", "small_area_px": 50, "large_area_px": 60}) == [0, 0]
    assert score("iou", ["", "a dog"]) == [0, 0]


def test_box_rewards_take_parsed_boxes_and_refuse_position_tokens() -> None:
    assert get_reward("box_accuracy")([[0.0, 0.0, 10.0, 10.0], None], RECORDS).tolist() == [1, 0]
    with pytest.raises(UserError, match="needs pixels, not position tokens"):
        get_reward("iou")(["0,0,1,1", "<bin_0> <bin_1> <bin_2> <bin_3>"], RECORDS)


def test_vqa_accuracy_reads_answers() -> None:
    assert score("vqa_accuracy", ["cat", "2"]) == pytest.approx([0.9, 1], abs=1e-12)


def test_vqa_accuracy_of_some_questions_adds_up_to_that_of_all() -> None:
    records = [{"answers": [answer], "question_type": kind} for answer, kind in (("yes", "b"), ("no", "b"), ("2", "n"))]
    given = ["yes", "yes", "2"]

    def scores(**params: Any) -> list[float]:
        return get_reward("vqa_accuracy", params, records=records)(given, records).tolist()

    assert scores() == [1, 0, 1]
    assert scores(answers=["yes"]) == [1, 0, 0]
    assert scores(answers=["no"]) == [0, 0, 0]
    assert scores(types=["n"]) == [0, 0, 1]
    assert scores(types=["b"], answers=["2", "yes"]) == [1, 0, 0]


@pytest.mark.parametrize("name", PLAIN)
def test_an_empty_batch_gives_no_reward(name: str) -> None:
    rewards = get_reward(name, records=RECORDS)([], [])
    assert rewards.shape == (0,)
    assert rewards.dtype == np.float64


@pytest.mark.parametrize("name", PLAIN)
def test_rewards_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    reward = get_reward(name, records=RECORDS)
    both = reward(PREDICTIONS, RECORDS)
    assert [reward([text], [record])[0] for text, record in zip(PREDICTIONS, RECORDS, strict=True)] == both.tolist()


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_of_unequal_lengths_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="1 predictions but 2 records"):
        get_reward(name, records=RECORDS)(["a"], RECORDS)


def test_a_missing_field_names_the_record_and_what_it_has() -> None:
    with pytest.raises(UserError, match="no 'caption'") as caught:
        get_reward("bleu1")(["a"], [{"uid": "7", "image": "x.png"}])
    assert caught.value.where == "record 7"
    assert caught.value.fix == "it has 'uid', 'image'"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cider", {}, "unknown reward 'cider'.*did you mean 'cider_d'"),
        ("brevity", {"max_word": 9}, "unknown parameter 'max_word'.*did you mean 'max_words'"),
        ("brevity", {"max_words": "9"}, "max_words is '9', not a whole number"),
        ("brevity", {"max_words": 9.5}, "not a whole number"),
        ("box_accuracy", {"threshold": True}, "threshold is True, not a number"),
        ("cider_d", {}, "parameter 'cider' is missing"),
        ("cider_d", {"cider": "df.json"}, "cider is a str.*pass a fitted CiderD"),
        ("name_precision", {}, "parameter 'vocabulary' is missing"),
        ("bleu1", {"n": 1}, "unknown parameter 'n'"),
    ],
)
def test_wrong_names_and_parameters_are_user_errors(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_reward(name, params)


def test_values_out_of_range_are_user_errors() -> None:
    with pytest.raises(UserError, match="min_words is 5, max_words 5"):
        get_reward("brevity", {"min_words": 5, "max_words": 5})(["a"], [{}])
    with pytest.raises(UserError, match="unknown size class"):
        get_reward("iou", {"size": "huge"})(["0,0,1,1"], RECORDS[:1])


def test_labels_tell_two_uses_of_a_reward_apart() -> None:
    params = {f"box_accuracy:{size}": {"size": size} for size in ("small", "large")}
    total = weighted_reward({"box_accuracy:small": 1.0, "box_accuracy:large": 10.0}, params)
    predictions = ["0,0,10,10", "0,0,400,400"]
    terms = total.terms(predictions, RECORDS)
    assert {name: values.tolist() for name, values in terms.items()} == {
        "box_accuracy:small": [1, 0],
        "box_accuracy:large": [0, 1],
    }
    assert total(predictions, RECORDS).tolist() == total.total(terms).tolist() == [1, 10]


def test_given_arguments_reach_only_the_rewards_that_have_them() -> None:
    total = weighted_reward({"brevity": 1.0, "iou": 1.0}, {"brevity": {"max_words": 5}}, given={"num_bins": 5})
    assert total(["0,0,10,10"], RECORDS[:1]) == pytest.approx([2])


def test_weighted_sum_adds_its_terms() -> None:
    weights = {"cider_d": 0.25, "brevity": -2, "name_recall": 1.0}
    total = weighted_reward(weights, {"brevity": {"max_words": 8}}, records=RECORDS)(PREDICTIONS, RECORDS)
    terms = [get_reward("cider_d", records=RECORDS), get_reward("brevity", {"max_words": 8})]
    terms.append(get_reward("name_recall", records=RECORDS))
    values = [term(PREDICTIONS, RECORDS) for term in terms]
    np.testing.assert_allclose(total, 0.25 * values[0] - 2 * values[1] + values[2], rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("weights", "params", "message"),
    [
        ({}, {}, "no reward"),
        ({"bleu1": float("nan")}, {}, "not a finite number"),
        ({"bleu1": "0.5"}, {}, "not a finite number"),
        ({"bleu": 1.0}, {}, "unknown reward 'bleu'"),
        ({"bleu1": 1.0}, {"brevity": {}}, "'brevity', which has no weight"),
    ],
)
def test_wrong_weights_are_user_errors(weights: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        weighted_reward(weights, params)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.5, float("nan")], r"it gave nan for a sample of row 2 \(1 such samples\).*reward own"),
        ([0.5, float("inf")], "it gave inf for a sample of row 2"),
        ([0.5], r"it gave \(1,\) numbers for 2 samples"),
        (["good", "bad"], "it gave no numbers"),
    ],
)
def test_what_is_no_reward_is_refused_with_its_name(
    given: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "own", lambda predictions, records: given[: len(predictions)])
    with pytest.raises(UserError, match=message):
        weighted_reward({"own": 1.0})(PREDICTIONS, RECORDS)


def test_workers_get_all_of_a_record_but_the_media() -> None:
    record = {"uid": "1", "meta": {"a": [1]}, "none": None, "image": b"png", "sound": np.zeros(3)}
    assert text_fields(record) == {"uid": "1", "meta": {"a": [1]}, "none": None}


OWN = """
import numpy as np

def words(predictions, records, *, most: int = 3, least=0):
    return [min(len(text.split()), most) - least for text in predictions]

def alone(predictions):
    return np.zeros(len(predictions))

value = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"rewards_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # where the folder is added
    return name


def test_a_reward_of_ones_own_is_named_by_module_and_function(own_module: str) -> None:
    name = f"{own_module}:words"
    reward = weighted_reward({name: 2.0, f"{name}:short": 1.0, "brevity": 0.0}, {f"{name}:short": {"most": 1}})
    assert reward(PREDICTIONS, RECORDS).tolist() == [7.0, 7.0]
    check_rewards({name: 1.0}, {name: {"least": 1}})


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("{}:nothing", {}, "has no function 'nothing'"),
        ("{}:value", {}, "has no function 'value'"),
        ("{}:alone", {}, "alone does not take texts and records.*def reward"),
        ("{}:words", {"mots": 1}, "unknown parameter 'mots'.*did you mean 'most'"),
        ("{}:words", {"most": "x"}, "most is 'x', not a whole number"),
        ("no_module_{}:words", {}, "unknown reward 'no_module_.*', and no module of that name"),
        ("cider_x:words", {}, "did you mean 'cider_d'"),
        ("cider_x", {}, "unknown reward 'cider_x'.*did you mean 'cider_d'.*module:function"),
        (":words", {}, "unknown reward ''"),
    ],
)
def test_what_is_no_reward_of_ones_own_is_explained(
    own_module: str, name: str, params: dict[str, Any], message: str
) -> None:
    name = name.format(own_module)
    with pytest.raises(UserError, match=message):
        check_rewards({name: 1.0}, {name: params})
