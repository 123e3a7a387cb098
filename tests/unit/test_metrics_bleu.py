import math

import pytest

from unival.errors import UserError
from unival.metrics.bleu import bleu


def test_value_worked_by_hand() -> None:
    # Precisions 4/5, 2/4; equal lengths, so no penalty. 1e-8: the constants 1e-15 and 1e-9 of the definition.
    scores = bleu(["a cat on the mat"], [["a cat under the mat"]])
    assert scores["bleu1"].value == pytest.approx(0.8, abs=1e-8)
    assert scores["bleu2"].value == pytest.approx(math.sqrt(0.8 * 0.5), abs=1e-8)
    assert scores["bleu3"].value < 1e-4


def test_length_penalty_uses_the_closest_reference_and_the_shorter_on_a_tie() -> None:
    scores = bleu(["a b c", "a b c"], [["a b c d", "a b"], ["a b c d e", "a b c d"]])
    assert scores["bleu1"].per_sample[0] == pytest.approx(1, abs=1e-8)  # 2 words, not 4: no penalty
    assert scores["bleu1"].per_sample[1] == pytest.approx(math.exp(1 - 4 / 3), abs=1e-8)


def test_counts_are_clipped_to_the_most_of_any_reference() -> None:
    assert bleu(["a a a a"], [["a b b b", "a a b b"]])["bleu1"].value == pytest.approx(0.5, abs=1e-8)


def test_corpus_score_pools_counts_before_dividing() -> None:
    score = bleu(["a b c d", "x"], [["a b c d"], ["y"]])["bleu1"]
    assert score.per_sample == pytest.approx([1, 0], abs=1e-5)
    assert score.value == pytest.approx(4 / 5, abs=1e-8)


def test_a_perfect_caption_of_three_words_has_almost_no_bleu4() -> None:
    assert bleu(["a red bus"], [["a red bus"]])["bleu4"].value == pytest.approx(1e-6**0.25, abs=1e-8)


def test_an_empty_prediction_scores_zero() -> None:
    assert [score.value for score in bleu([""], [["a cat"]]).values()] == [0, 0, 0, 0]


def test_no_sample_is_refused() -> None:
    with pytest.raises(UserError, match="no sample"):
        bleu([], [])
