"""FID, Inception Score and CLIP similarity against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from unival.errors import UserError
from unival.metrics.fid import FeatureStatistics, clip_similarity, frechet_distance, inception_score


def statistics(mean: list[float], covariance: list[list[float]]) -> FeatureStatistics:
    return FeatureStatistics(np.array(mean), np.array(covariance), 100)


def test_statistics_do_not_depend_on_the_batches() -> None:
    features = np.random.default_rng(0).normal(1e4, 3.0, size=(101, 5))
    parts = np.split(features, [1, 2, 40, 90])
    found = FeatureStatistics.of(parts)
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-9)
    assert found.num_samples == 101


def test_equal_distributions_have_distance_0() -> None:
    both = FeatureStatistics.of([np.random.default_rng(1).normal(size=(50, 4))])
    assert frechet_distance(both, both) == pytest.approx(0.0, abs=1e-12)


def test_distance_of_normal_distributions_on_a_line_is_known() -> None:
    # (m1 - m2)^2 + (s1 - s2)^2
    assert frechet_distance(statistics([1.0], [[4.0]]), statistics([4.0], [[25.0]])) == pytest.approx(9 + 9)


def test_distance_of_commuting_covariances_is_known() -> None:
    # Both are diagonal in the same basis, turned by 30 degrees: |m|^2 plus the squared differences of the roots.
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    turn = np.array([[c, -s], [s, c]])
    first = FeatureStatistics(np.zeros(2), turn @ np.diag([9.0, 1.0]) @ turn.T, 10)
    second = FeatureStatistics(np.array([3.0, 4.0]), turn @ np.diag([1.0, 16.0]) @ turn.T, 10)
    assert frechet_distance(first, second) == pytest.approx(25 + (3 - 1) ** 2 + (1 - 4) ** 2)


def test_distance_of_2_by_2_covariances_equals_the_root_worked_by_hand() -> None:
    # tr((AB)^(1/2)) = (tr(AB) + 2 (det(AB))^(1/2))^(1/2) for two dimensions.
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    expected = np.trace(a) + np.trace(b) - 2 * root
    found = frechet_distance(FeatureStatistics(np.zeros(2), a, 9), FeatureStatistics(np.zeros(2), b, 9))
    assert found == pytest.approx(expected, rel=1e-12)


def test_singular_covariances_are_fine_and_the_distance_is_symmetric() -> None:
    rng = np.random.default_rng(2)
    first = FeatureStatistics.of([rng.normal(size=(3, 8))])
    second = FeatureStatistics.of([rng.normal(size=(4, 8))])
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    point = statistics([0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]])
    assert frechet_distance(point, statistics([3.0, 4.0], [[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(27)


def test_statistics_are_stored_under_the_usual_names(tmp_path: Path) -> None:
    own = FeatureStatistics.of([np.random.default_rng(3).normal(size=(20, 3))])
    own.save(tmp_path / "coco.npz")
    with np.load(tmp_path / "coco.npz") as data:
        assert set(data.files) == {"mu", "sigma", "n"}
    loaded = FeatureStatistics.load(tmp_path / "coco.npz")
    assert frechet_distance(own, loaded) == pytest.approx(0.0, abs=1e-12)
    np.savez(tmp_path / "theirs.npz", mu=own.mean.astype(np.float32), sigma=own.covariance)
    assert FeatureStatistics.load(tmp_path / "theirs.npz").num_samples == 0


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_file_that_is_no_statistics_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match="not feature statistics") as caught:
        FeatureStatistics.load(tmp_path / "x.npz")
    assert "x.npz" in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        FeatureStatistics.load(tmp_path / "absent.npz")


def test_inception_score_is_1_for_one_answer_and_the_number_of_classes_for_sure_and_even_ones() -> None:
    assert inception_score(np.full((20, 4), 0.25)) == (pytest.approx(1.0), pytest.approx(0.0))
    assert inception_score(np.tile(np.eye(4), (10, 1)), num_splits=10) == (pytest.approx(4.0), pytest.approx(0.0))


def test_inception_score_of_one_split_equals_the_definition() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    marginal = p.mean(axis=0)
    expected = np.exp((p * np.log(p / marginal)).sum(axis=1).mean())
    assert inception_score(p, num_splits=1) == (pytest.approx(expected), 0.0)
    mean, deviation = inception_score(p, num_splits=3)
    assert (mean, deviation) == (pytest.approx(1.0), pytest.approx(0.0))


def test_clip_similarity_is_100_times_the_cosine_whatever_the_length() -> None:
    score = clip_similarity([[1.0, 0.0], [3.0, 4.0]], [[2.0, 0.0], [4.0, 3.0]])
    assert score.per_sample.tolist() == pytest.approx([100.0, 96.0])
    assert score.value == pytest.approx(98.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureStatistics.of([]), "0 samples"),
        (lambda: FeatureStatistics.of([np.zeros((1, 2))]), "1 samples"),
        (lambda: FeatureStatistics.of([np.zeros((2, 2)), np.zeros((2, 3))]), r"batch 1: shape \(2, 3\)"),
        (lambda: FeatureStatistics.of([np.array([[np.nan], [1.0]])]), "not finite"),
        (
            lambda: frechet_distance(statistics([0.0], [[1.0]]), statistics([0.0, 0.0], np.eye(2).tolist())),
            "dimensions",
        ),
        (lambda: inception_score(np.ones((4, 4)), 1), "no probability distribution"),
        (lambda: inception_score(np.full((4, 4), 0.25)), "10 splits of 4"),
        (lambda: clip_similarity([[1.0]], [[1.0], [1.0]]), "1 pictures but 2 texts"),
        (lambda: clip_similarity([[0.0]], [[1.0]]), "zero"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
