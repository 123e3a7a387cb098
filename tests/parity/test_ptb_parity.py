"""The PTB port against stored output of the Java program (`make_ptb_fixture.py` rebuilds it)."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from unival.metrics.ptb import PUNCTUATION, ptb_tokenize

# What a person writes in a caption: letters, commas, dots, hyphens, apostrophes.
ORDINARY = re.compile(r"[A-Za-z ,.'-]*")


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    path = Path(__file__).parent / "data" / "ptb_java.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()).decode("utf-8"))


@pytest.fixture(scope="module")
def pairs(fixture: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (caption, what the evaluation makes of Java's output, ours)."""
    expected = [" ".join(w for w in line.split(" ") if w and w not in PUNCTUATION) for line in fixture["tokens"]]
    return list(zip(fixture["captions"], expected, ptb_tokenize(fixture["captions"]), strict=True))


def test_the_fixture_is_large_and_nasty_enough(fixture: dict[str, Any]) -> None:
    assert fixture["counts"] == {"plain": 5000, "simple": 1500, "nasty": 700}
    assert len(fixture["captions"]) == 7200


def test_ordinary_captions_are_all_equal(pairs: list[tuple[str, str, str]]) -> None:
    ordinary = [pair for pair in pairs if ORDINARY.fullmatch(pair[0])]
    assert len(ordinary) > 3000
    assert [pair for pair in ordinary if pair[1] != pair[2]] == []


def test_at_least_999_in_1000_of_all_are_equal(pairs: list[tuple[str, str, str]]) -> None:
    different = [pair for pair in pairs if pair[1] != pair[2]]
    assert len(different) <= len(pairs) / 1000, different[:5]
