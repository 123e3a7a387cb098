"""Scores of generated pictures from features: Fréchet distance (FID), Inception Score, CLIP similarity.

Only the arithmetic, in float64; `feature_models` makes the features. FID: Heusel et al. 2017 (arXiv:1706.08500); IS:
Salimans et al. 2016 (arXiv:1606.03498); CLIPSIM: 100 times the cosine, as UnIVAL reports it.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unival.atomic import replacing
from unival.errors import UserError
from unival.metrics.score import Score, mean_score


class FeatureStatistics(NamedTuple):
    """Mean (D,), covariance (D, D) with n - 1 in the denominator, and number of pictures; float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    num_samples: int

    @classmethod
    def of(cls, batches: Iterable[ArrayLike]) -> "FeatureStatistics":
        """Compute them over batches of features (N, D), one batch in memory at a time.

        Raises:
            UserError: Fewer than two samples, another shape, or a value that is not finite.
        """
        count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
        for number, batch in enumerate(batches):
            values = _matrix(batch, f"batch {number}", mean.size or None)
            if not count:
                mean, scatter = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
            # Chan et al. 1979: exact for any cut into batches, unlike sums of squares.
            centre = values.mean(axis=0)
            shift = centre - mean
            total = count + len(values)
            scatter += (values - centre).T @ (values - centre) + np.outer(shift, shift) * count * len(values) / total
            mean = mean + shift * len(values) / total
            count = total
        if count < 2:
            raise UserError(f"{count} samples have no covariance", fix="give features of at least two pictures")
        return cls(mean, scatter / (count - 1), count)

    def save(self, path: str | Path) -> None:
        """Write `mu`, `sigma` and `n` as .npz, the names that other FID programs use."""
        with replacing(path, "wb") as file:
            np.savez(file, mu=self.mean, sigma=self.covariance, n=self.num_samples)

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Read an .npz file with `mu` and `sigma`, such as precomputed statistics of COCO.

        Raises:
            UserError: No such file, or not such statistics.
        """
        fix = "write it with FeatureStatistics.of(batches).save(path)"
        try:
            with Path(path).open("rb") as file, np.load(file) as data:
                mean, covariance = data["mu"].astype(np.float64), data["sigma"].astype(np.float64)
                count = int(data["n"]) if "n" in data.files else 0
        except FileNotFoundError:
            raise UserError("no such file of feature statistics", where=str(path), fix=fix) from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"not feature statistics: {error}", where=str(path), fix=fix) from None
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise UserError(f"mu has shape {mean.shape}, sigma {covariance.shape}", where=str(path), fix=fix)
        return cls(mean, covariance, count)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Compute |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared distance of two normal distributions.

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2): no complex numbers, and singular
    covariances (fewer pictures than dimensions) need no special case.

    Raises:
        UserError: The features have different dimensions.
    """
    if first.mean.shape != second.mean.shape:
        what = f"features of {first.mean.size} and of {second.mean.size} dimensions"
        raise UserError(what, fix="compute both with the same network")
    difference = first.mean - second.mean
    cross = np.linalg.svd(_root(first.covariance) @ _root(second.covariance), compute_uv=False).sum()
    distance = difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross
    return max(0.0, float(distance))


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the symmetric square root; eigenvalues within rounding of 0 are 0, their roots would be 1e-8."""
    values, vectors = np.linalg.eigh(covariance)
    values[values < len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)] = 0.0
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def inception_score(probabilities: ArrayLike, num_splits: int = 10) -> tuple[float, float]:
    """Compute exp(mean KL(p(y|x) || p(y))) of class probabilities (N, classes), split in order.

    Returns:
        Mean and standard deviation (n in the denominator) over the splits.

    Raises:
        UserError: Rows that are no distributions, or fewer samples than splits.
    """
    values = _matrix(probabilities, "probabilities")
    if (values < 0).any() or not np.allclose(values.sum(axis=1), 1.0, atol=1e-4):
        raise UserError("a row is no probability distribution", fix="pass the softmax of the classifier's logits")
    if not 1 <= num_splits <= len(values):
        raise UserError(f"{num_splits} splits of {len(values)} samples", fix="use fewer splits, 10 are usual")
    scores = []
    for part in np.array_split(values, num_splits):
        marginal = part.mean(axis=0)
        # p log p is 0 at 0, and where the marginal is 0 all p are.
        ratio = np.divide(part, marginal, out=np.ones_like(part), where=(part > 0) & (marginal > 0))
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def clip_similarity(images: ArrayLike, texts: ArrayLike) -> Score:
    """Compute 100 times the cosine of each picture's and its text's embedding, both (N, D).

    Raises:
        UserError: Different shapes, no sample, a zero or infinite embedding.
    """
    first = _matrix(images, "image embeddings")
    second = _matrix(texts, "text embeddings", first.shape[1])
    if len(first) != len(second):
        raise UserError(f"{len(first)} pictures but {len(second)} texts", fix="pass one text per picture")
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    if not norms.all():
        raise UserError("an embedding is zero", where=f"sample {int(np.flatnonzero(norms == 0)[0])}")
    return mean_score(100.0 * (first * second).sum(axis=1) / norms)


def _matrix(values: ArrayLike, name: str, num_columns: int | None = None) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size or num_columns not in (None, array.shape[1]):
        wanted = f"(samples, {num_columns or 'dimensions'})"
        raise UserError(f"{name}: shape {array.shape}", fix=f"pass {wanted}, at least one sample")
    if not np.isfinite(array).all():
        raise UserError("a value is not finite", where=name)
    return array
