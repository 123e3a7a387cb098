"""Examples and the one place that pads."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unival.batch import Example, pad


def test_rows_are_padded_on_the_right() -> None:
    padded = pad([[5, 6, 7], [8], []], 1)
    assert padded.tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert padded.dtype == torch.int64


@given(rows=st.lists(st.lists(st.integers(2, 99), max_size=7), min_size=1, max_size=5))
def test_padding_keeps_every_row(rows: list[list[int]]) -> None:
    padded = pad(rows, 1)
    assert padded.shape == (len(rows), max(map(len, rows)))
    assert [row[row != 1].tolist() for row in padded] == rows


def test_an_example_cannot_be_changed() -> None:
    example = Example("1", "what?")
    assert (example.target, example.modality, example.media, example.media_id) == ("", "text", None, "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.prompt = "other"  # type: ignore[misc]
