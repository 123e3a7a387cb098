import pytest

from unival.errors import UserError
from unival.metrics.vqa_accuracy import normalize_answer, soft_scores, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The 2 cats'  toy, red.", "2 cats' toy red"),
        ("An apple", "apple"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("wouldnt've", "wouldn't've"),
        ("its", "its"),
        ("10:30", "10:30"),
        ("3.5", "3.5"),
        ("St. Louis", "st louis"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("a\nb", "b"),
        ("", ""),
    ],
)
def test_normal_form(answer: str, expected: str) -> None:
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_accuracy_by_number_of_people_who_agree(count: int, expected: float) -> None:
    answers = ["cat"] * count + ["dog"] * (10 - count)
    # 1e-12: a sum of thirds in float64.
    assert vqa_accuracy(["a Cat"], [answers]).value == pytest.approx(expected, abs=1e-12)


def test_a_single_answer_is_matched_exactly_after_normalization() -> None:
    score = vqa_accuracy(["two", "dog", ""], [["2"], ["cat"], ["the"]])
    assert score.per_sample.tolist() == [1, 0, 1]
    assert score.value == pytest.approx(2 / 3, abs=1e-12)


def test_official_references_are_not_normalized_beyond_punctuation() -> None:
    answers = [["two"] * 9 + ["three?"]]
    assert vqa_accuracy(["two"], answers).value == 1
    assert vqa_accuracy(["two"], answers, official_references=True).value == 0


def test_soft_scores_are_the_accuracies_of_the_given_answers_best_first() -> None:
    answers = ["dog", "cat", "Cat", "a cat", "cat", "dog", "bird", "fox", "fox", "fox"]
    scores = soft_scores(answers)
    assert list(scores) == ["cat", "fox", "dog", "bird"]
    assert list(scores.values()) == pytest.approx([1, 0.9, 0.6, 0.3], abs=1e-12)
    assert all(vqa_accuracy([answer], [answers]).value == score for answer, score in scores.items())


@pytest.mark.parametrize("answers", ["cat", []])
def test_answers_must_be_a_non_empty_list(answers: list[str]) -> None:
    with pytest.raises(UserError, match="answer"):
        soft_scores(answers)
    with pytest.raises(UserError) as caught:
        vqa_accuracy(["cat", "cat"], [["cat"], answers])
    assert caught.value.where == "answers[1]"


def test_lengths_must_agree() -> None:
    with pytest.raises(UserError, match="1 predictions but 2 answer lists"):
        vqa_accuracy(["cat"], [["cat"], ["cat"]])
