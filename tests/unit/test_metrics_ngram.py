from unival.metrics.ngram import count_ngrams, simple_tokenize


def test_tokenizing_lowers_strips_punctuation_and_collapses_space() -> None:
    assert simple_tokenize("  A cat's\ttoy -- a T-shirt. ") == "a cats toy a tshirt"
    assert simple_tokenize("?!") == ""


def test_ngrams_are_counted_up_to_the_length_asked_for() -> None:
    assert count_ngrams(["a", "b", "a", "b"], 2) == {("a",): 2, ("b",): 2, ("a", "b"): 2, ("b", "a"): 1}
    assert count_ngrams(["a"], 4) == {("a",): 1}
    assert count_ngrams([], 4) == {}
