"""PTB tokenisation: the quirks of the official evaluation, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unival.metrics.ptb import PUNCTUATION, ptb_tokenize


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's (red) T-shirt isn't here.", "a man 's -lrb- red -rrb- t-shirt is n't here"),
        ("he can't, she won't, they cannot", "he ca n't she wo n't they can not"),
        ("wait... what?! really!", "wait what ?! really"),
        ("a sign w/ arrows and/or dots", "a sign w / arrows and/or dots"),
        ("at 5 p.m. on Main St. near Mr. Smith", "at 5 p.m. on main st. near mr. smith"),
        ("$5.00 for 1/2 of 1 1/2", "$ 5.00 for 1/2 of 1\u00a01/2"),
        ("“it\u2019s” — a \u2018test\u2019", "it 's a test"),
        ("rock 'n' roll in the '90s at 10 o'clock", "rock 'n' roll in the '90s at 10 o'clock"),
        ("black&white R&B @bob #dog www.a.com", "black & white r&b @bob #dog www.a.com"),
        ("a cat 😀 on a café table", "a cat on a café table"),
        ("gonna go, 'tis late", "gon na go 't is late"),
        ("one,two 1,000 dog.cat", "one two 1,000 dog.cat"),
        ("", ""),
        (" . , !? ", "!?"),
    ],
)
def test_examples(caption: str, tokens: str) -> None:
    assert ptb_tokenize([caption]) == [tokens]


def test_a_single_letter_loses_its_dot_where_the_next_caption_begins_a_sentence() -> None:
    assert ptb_tokenize(["a plan B.", "A dog", "a plan B.", "dogs"]) == ["a plan b", "a dog", "a plan b.", "dogs"]


def test_line_ends_inside_a_caption_are_spaces() -> None:
    assert ptb_tokenize(["a cat\non a\r\nmat"]) == ["a cat on a mat"]


@given(st.lists(st.text(max_size=30), max_size=5))
def test_every_caption_has_a_line_of_lower_case_tokens(captions: list[str]) -> None:
    lines = ptb_tokenize(captions)
    assert len(lines) == len(captions)
    for line in lines:
        assert not set(line.split(" ")) & PUNCTUATION
        assert "\n" not in line
        assert line == line.strip(" ")


@given(st.lists(st.sampled_from(["a", "dog", "cat", "red", "runs", "on", "the", "mat"]), max_size=8))
def test_plain_words_stay(words: list[str]) -> None:
    assert ptb_tokenize([" ".join(words)]) == [" ".join(words)]
