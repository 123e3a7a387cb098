import pytest

from unival.errors import UserError
from unival.metrics.caption_match import exact_match, mentioned_names, name_precision, name_recall

VOCABULARY = ["cat", "cat face", "dog", "sun", "sun with face", "T-Rex", "face"]


def test_exact_match_ignores_whitespace_only() -> None:
    score = exact_match(["yes", " a  cat ", "Yes", "yes."], [["no", "yes"], ["a cat"], ["yes"], ["yes"]])
    assert score.per_sample.tolist() == [1, 1, 0, 0]
    assert score.value == 0.5


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat face and a dog", {"cat face", "dog"}),
        ("a cat and a cat face", {"cat", "cat face"}),
        ("A T-REX, a cat.", {"trex", "cat"}),
        ("cats and a hotdog", set()),
        ("sun with cat face", {"sun", "cat face"}),
        ("", set()),
    ],
)
def test_longest_names_use_up_their_words(caption: str, expected: set[str]) -> None:
    assert mentioned_names(caption, VOCABULARY) == expected


def test_a_longer_name_wins_over_one_that_starts_earlier() -> None:
    assert mentioned_names("a b c d", ["a b", "b c d"]) == {"b c d"}


def test_removed_words_do_not_join_their_neighbours() -> None:
    assert mentioned_names("red x y z ball", ["red ball", "x y z"]) == {"x y z"}


def test_recall_counts_distinct_objects() -> None:
    caption = "a cat face and a dog"
    assert name_recall(caption, ["cat face", "dog", "sun", "dog"], VOCABULARY) == pytest.approx(2 / 3, abs=1e-15)
    assert name_recall(caption, ["cat"], VOCABULARY) == 0
    assert name_recall(caption, ["cat"]) == 1  # without the vocabulary nobody knows of cat faces
    assert name_recall(caption, ["cat", "cat face"]) == 0.5
    assert name_recall(caption, []) == 1


def test_precision_punishes_names_that_are_not_there_and_silence() -> None:
    assert name_precision("a cat, a dog and a sun", ["cat", "dog", "T-Rex"], VOCABULARY) == pytest.approx(2 / 3)
    assert name_precision("nothing", ["cat"], VOCABULARY) == 0
    assert name_precision("nothing", [], VOCABULARY) == 1
    assert name_precision("a cat", [], VOCABULARY) == 0


@pytest.mark.parametrize("call", [lambda: name_recall("a", "cat"), lambda: name_precision("a", ["cat"], "cat")])
def test_a_bare_string_of_names_is_refused(call) -> None:
    with pytest.raises(UserError, match="one string"):
        call()
