"""Tables of means with intervals: the bootstrap's numbers, as a notebook and a terminal show them."""

import numpy as np
import pytest

import unival
from unival.errors import UserError
from unival.metrics.bootstrap import bootstrap_mean

SCORES = {"seen": [0.0, 1.0, 1.0, 0.0, 1.0], "a|b": np.array([0.5, 0.5])}


def test_rows_hold_the_bootstrap_of_their_scores_and_their_sizes() -> None:
    table = unival.intervals(SCORES)
    assert table.rows == {name: bootstrap_mean(scores) for name, scores in SCORES.items()}
    assert table.sizes == {"seen": 5, "a|b": 2}


def test_means_and_errors_are_what_error_bars_need() -> None:
    table = unival.intervals(SCORES)
    row = table.rows["seen"]
    assert table.means.tolist() == [row.mean, 0.5]
    assert table.errors.tolist() == [[row.mean - row.low, 0.0], [row.high - row.mean, 0.0]]


def test_the_printed_table_is_aligned() -> None:
    assert str(unival.intervals({"b": [0.5, 0.5], "long name": [1.0]})).splitlines() == [
        "            mean   95 % interval  samples",
        "b          0.500  0.500 to 0.500        2",
        "long name  1.000  1.000 to 1.000        1",
    ]


def test_the_markdown_table_keeps_bars_inside_their_cells() -> None:
    assert unival.intervals({"a|b": [0.5, 0.5]})._repr_markdown_().splitlines() == [
        "|  | mean | 95 % interval | samples |",
        "| --- | --- | --- | --- |",
        "| a\\|b | 0.500 | 0.500 to 0.500 | 2 |",
    ]


def test_an_empty_row_is_an_error() -> None:
    with pytest.raises(UserError, match="shape"):
        unival.intervals({"none": []})
