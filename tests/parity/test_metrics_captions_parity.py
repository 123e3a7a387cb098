"""CIDEr-D, BLEU and ROUGE-L against stored scores of pycocoevalcap 1.2 (see `make_metrics_fixtures.py`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scripts import load_script
from unival.metrics.bleu import bleu
from unival.metrics.cider import CiderD, DocumentFrequencies, cider_d
from unival.metrics.rouge import rouge_l

# Same formula in float64; only the order of some sums differs. Scores are at most 10: 1e-10 relative.
TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def fixture() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "metrics_captions.json").read_text(encoding="utf-8"))


def assert_equal(score: Any, expected: dict[str, Any]) -> None:
    np.testing.assert_allclose(score.per_sample, expected["per_sample"], rtol=0, atol=TOLERANCE)
    assert score.value == pytest.approx(expected["value"], abs=TOLERANCE)


def test_fixture_covers_one_to_five_references_and_the_whole_range(fixture: dict[str, Any]) -> None:
    assert {len(sample) for sample in fixture["references"]} == {1, 2, 3, 4, 5}
    scores = np.array(fixture["scores"]["cider_d"]["per_sample"])
    assert (scores == 0).any()
    assert (scores > 9).any()


def test_cider_d_equals_pycocoevalcap(fixture: dict[str, Any]) -> None:
    assert_equal(cider_d(fixture["predictions"], fixture["references"]), fixture["scores"]["cider_d"])


def test_cider_d_with_stored_document_frequencies_equals_pycocoevalcap(fixture: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "frequencies.json"
    DocumentFrequencies.from_references(fixture["references"]).save(path)
    cider = CiderD((), DocumentFrequencies.load(path))
    scores = cider.score(fixture["predictions"], fixture["references"])
    np.testing.assert_allclose(scores, fixture["scores"]["cider_d"]["per_sample"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bleu1", "bleu2", "bleu3", "bleu4"])
def test_bleu_equals_pycocoevalcap(fixture: dict[str, Any], name: str) -> None:
    assert_equal(bleu(fixture["predictions"], fixture["references"])[name], fixture["scores"][name])


def test_rouge_l_equals_pycocoevalcap(fixture: dict[str, Any]) -> None:
    assert_equal(rouge_l(fixture["predictions"], fixture["references"]), fixture["scores"]["rouge_l"])


@pytest.mark.slow
def test_five_thousand_captions_equal_pycocoevalcap_itself() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs the extra `coco-java`")
    script = load_script(Path(__file__).parent / "make_metrics_fixtures.py")
    predictions, references = script.caption_samples(5000, 5, seed=7)
    expected, _ = script.score_captions(predictions, references)
    assert_equal(cider_d(predictions, references), expected["cider_d"])
    assert_equal(rouge_l(predictions, references), expected["rouge_l"])
    for name, score in bleu(predictions, references).items():
        assert_equal(score, expected[name])
