"""VQA accuracy against the official evaluation (stored output; `make_metrics_fixtures.py` rebuilds it)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unival.metrics import vqa_accuracy as vqa

# The official script rounds a percentage to 12 decimals here, and sums where we use a closed form.
TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "metrics_vqa.json").read_text(encoding="utf-8"))


def test_normal_forms_equal_the_official_ones(fixture: dict[str, Any]) -> None:
    assert {text: vqa.normalize_answer(text) for text in fixture["normalized"]} == fixture["normalized"]


def test_contractions_equal_the_official_table(fixture: dict[str, Any]) -> None:
    table = json.dumps(sorted(vqa._CONTRACTIONS.items()))
    assert hashlib.sha256(table.encode()).hexdigest() == fixture["contractions_sha256"]


def test_accuracy_of_normalized_answers_equals_the_official_one(fixture: dict[str, Any]) -> None:
    score = vqa.vqa_accuracy(fixture["predictions"], fixture["answers"])
    np.testing.assert_allclose(score.per_sample, fixture["accuracy_normalized"], rtol=0, atol=TOLERANCE)


def test_accuracy_of_raw_answers_equals_the_official_one(fixture: dict[str, Any]) -> None:
    score = vqa.vqa_accuracy(fixture["predictions"], fixture["answers"], official_references=True)
    np.testing.assert_allclose(score.per_sample, fixture["accuracy_raw"], rtol=0, atol=TOLERANCE)


def test_fixture_tells_the_two_treatments_apart(fixture: dict[str, Any]) -> None:
    assert fixture["accuracy_raw"] != fixture["accuracy_normalized"]
