import pytest

from unival.errors import UserError
from unival.metrics.rouge import rouge_l


def test_value_worked_by_hand() -> None:
    # Longest common subsequence "a on mat": precision 3/4, recall 3/5.
    score = rouge_l(["a dog on mat"], [["a cat on the mat"]])
    expected = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert score.value == pytest.approx(expected, abs=1e-12)  # float64, five operations


def test_order_matters() -> None:
    assert rouge_l(["b a"], [["a b"]]).value == pytest.approx(0.5, abs=1e-12)


def test_precision_and_recall_come_from_the_best_reference_of_each() -> None:
    # Precision 1 with the long reference, recall 1 with the short one: together 1, though each alone is less.
    assert rouge_l(["a b", "a b"], [["a b c d"], ["b"]]).per_sample.max() < 0.9
    assert rouge_l(["a b"], [["a b c d", "b"]]).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("prediction", "reference"), [("", "a cat"), ("a cat", ""), ("", ""), ("x", "a cat")])
def test_nothing_in_common_scores_zero(prediction: str, reference: str) -> None:
    assert rouge_l([prediction], [[reference]]).value == 0


def test_captions_longer_than_a_machine_word_are_exact() -> None:
    words = [f"w{place}" for place in range(200)]
    prediction, reference = " ".join(words), " ".join(words[::2])
    assert rouge_l([prediction], [[reference]]).value == pytest.approx(2.44 * 0.5 / (1 + 1.44 * 0.5), abs=1e-12)


def test_wrong_shapes_are_user_errors() -> None:
    with pytest.raises(UserError, match="one string"):
        rouge_l(["a"], ["a"])
    with pytest.raises(UserError, match="no sample"):
        rouge_l([], [])
