import json
import math
from pathlib import Path

import numpy as np
import pytest

from unival.errors import UserError
from unival.metrics.cider import CiderD, DocumentFrequencies, cider_d

REFERENCES = [["a cat on a mat", "a cat"], ["a dog runs"], ["the sun"]]


def test_value_worked_by_hand() -> None:
    # Documents "a" and "b c": every idf is l = log 2, so the unigrams of "b" and "b c" weigh (l) and (l, l).
    # Cosine of the unigrams 1 / sqrt 2; no bigram in "b"; lengths 1 and 2; mean over four n, times 10.
    score = CiderD([["a"], ["b c"]]).score(["a", "b"])
    expected = 10 / 4 / math.sqrt(2) * math.exp(-1 / 72)
    assert score.tolist() == pytest.approx([2.5, expected], abs=1e-12)  # float64, a few operations


def test_repeating_a_word_is_clipped_to_the_reference() -> None:
    cider = CiderD([["red ball here now"], ["x"]])
    plain, repeated = cider.score(["red ball here now", "x"])[0], cider.score(["red red red red", "x"])[0]
    # Unigrams: clipped product l^2 over norms 4 l and 2 l is 1/8; nothing in common for n > 1; equal lengths.
    assert plain == pytest.approx(10, abs=1e-12)
    assert repeated == pytest.approx(10 / 4 / 8, abs=1e-12)


def test_references_given_to_score_equal_those_of_the_constructor() -> None:
    cider = CiderD(REFERENCES)
    predictions = ["a cat on the mat", "dog", "sun"]
    expected = cider.score(predictions)
    permuted = cider.score([predictions[2], predictions[0]], [REFERENCES[2], REFERENCES[0]])
    assert permuted.tolist() == [expected[2], expected[0]]
    uncached = CiderD((), cider.document_frequencies).score(predictions, REFERENCES)
    assert uncached.tolist() == expected.tolist()


def test_document_frequencies_count_samples_not_captions() -> None:
    frequencies = DocumentFrequencies.from_references([["a cat", "a a"], ["a"]])
    assert frequencies.num_documents == 2
    assert frequencies.counts == {("a",): 2, ("cat",): 1, ("a", "cat"): 1, ("a", "a"): 1}


def test_document_frequencies_survive_a_file(tmp_path: Path) -> None:
    frequencies = DocumentFrequencies.from_references([*REFERENCES, ["un été\u2028"]])
    frequencies.save(tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json") == frequencies
    assert [path.name for path in tmp_path.iterdir()] == ["df.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_documents": 1, "counts": {"a": "x"}}', "\x80"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "df.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="not a document-frequency file") as caught:
        DocumentFrequencies.load(path)
    assert caught.value.where == str(path)


def test_counts_above_the_number_of_documents_are_refused(tmp_path: Path) -> None:
    (tmp_path / "df.json").write_text(json.dumps({"num_documents": 2, "counts": {"a": 3}}))
    with pytest.raises(UserError, match="in 3 of 2 documents"):
        DocumentFrequencies.load(tmp_path / "df.json")


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such document-frequency file"):
        DocumentFrequencies.load(tmp_path / "none.json")


def test_one_document_scores_zero_because_its_idf_is_zero() -> None:
    assert cider_d(["a cat"], [["a cat"]]).per_sample.tolist() == [0.0]


def test_corpus_value_is_the_mean() -> None:
    score = cider_d(["a cat", "a dog", "the sun"], REFERENCES)
    assert score.value == np.mean(score.per_sample)
    assert score.per_sample.dtype == np.float64


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], ["a cat"], "references of a sample are one string"),
        (["a"], [[]], "no reference"),
        (["a", "b"], [["a"]], "2 predictions but 1 references"),
        ("a", [["a"]], "predictions are one string"),
        ([], [], "no sample"),
    ],
)
def test_wrong_shapes_are_user_errors(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cider_d(predictions, references)


def test_a_wrong_number_of_predictions_is_refused() -> None:
    with pytest.raises(UserError, match="1 predictions but references of 3 samples"):
        CiderD(REFERENCES).score(["a"])


def test_the_scorer_of_a_corpus_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built, init = [], CiderD.__init__
    monkeypatch.setattr(CiderD, "__init__", lambda self, *args: (built.append(args), init(self, *args))[1])
    references = [["a unique corpus of this test", "a cat"], ["a dog runs"]]
    scores = [cider_d(["a cat", text], [list(captions) for captions in references]).value for text in ("a dog", "x")]
    assert len(built) == 1
    assert scores[0] == pytest.approx(CiderD(references).score(["a cat", "a dog"]).mean())
    assert scores[0] > scores[1]


def test_new_references_shared_by_several_predictions_score_like_alone() -> None:
    cider = CiderD([["a cat", "a dog runs"], ["a bird"]])
    references = [["a dog sleeps", "dog"]] * 2 + [["a bird flies"]]
    predictions = ["a dog", "a dog sleeps", "a bird"]
    alone = [cider.score([text], [own])[0] for text, own in zip(predictions, references, strict=True)]
    assert cider.score(predictions, references).tolist() == alone


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(UserError, match="no references"):
        CiderD([])
    with pytest.raises(UserError, match="sigma is 0"):
        CiderD(REFERENCES, sigma=0)
