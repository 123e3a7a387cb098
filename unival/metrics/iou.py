"""Intersection over union of boxes, and grounding accuracy by size of the reference.

Boxes are float64 [x0, y0, x1, y1] in pixels of the original image. Size classes follow the rewarded-soups
study on RefCOCO+ (Ramé et al. 2023, arXiv:2306.04488), with the thresholds of the released UnIVAL recipes:
areas below 30,000 square pixels are small, above 100,000 large, in between medium.
"""

import re
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unival.errors import UserError
from unival.metrics.score import Score, mean_score

SMALL_AREA_PX = 30_000.0
LARGE_AREA_PX = 100_000.0

Size = Literal["all", "small", "medium", "large", "mediumsmall", "mediumlarge", "smalllarge"]
SIZES: tuple[Size, ...] = get_args(Size)

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOX = re.compile(rf"\s*[\[(]?\s*({_NUMBER})" + rf"(?:\s*,\s*|\s+)({_NUMBER})" * 3 + r"\s*[\])]?\s*")


def parse_box(text: str) -> tuple[float, float, float, float] | None:
    """Read "x0,y0,x1,y1" (commas or spaces, optionally in brackets) in pixels; None for anything else."""
    match = _BOX.fullmatch(text)
    if match is None:
        return None
    x0, y0, x1, y1 = (float(group) for group in match.groups())
    return x0, y0, x1, y1


def box_iou(boxes: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """Compute the intersection over union of each pair.

    The denominator has + 1e-6, so a box with itself gets slightly less than 1 and empty boxes get 0. A box
    with a negative side is empty. The released UnIVAL code multiplies negative extents of disjoint boxes to a
    positive "intersection"; here disjoint boxes have 0. Accuracies agree, because a hit needs a positive
    intersection there.

    Args:
        boxes: shape (samples, 4), finite.
        references: shape (samples, 4), finite.

    Returns:
        Shape (samples,), in [0, 1).

    Raises:
        UserError: other shapes, or a value that is not finite.
    """
    first, second = _as_boxes(boxes, "boxes"), _as_boxes(references, "references")
    if len(first) != len(second):
        raise UserError(f"{len(first)} boxes but {len(second)} references", fix="pass one reference per box")
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    intersection = np.prod(np.maximum(high - low, 0.0), axis=1)
    return intersection / (box_area(first) + box_area(second) - intersection + 1e-6)


def box_area(boxes: ArrayLike) -> NDArray[np.float64]:
    """Compute areas in square pixels, shape (samples,); 0 for a box with a negative side."""
    checked = _as_boxes(boxes, "boxes")
    return np.prod(np.maximum(checked[:, 2:] - checked[:, :2], 0.0), axis=1)


def size_mask(
    references: ArrayLike,
    size: Size,
    small_area_px: float = SMALL_AREA_PX,
    large_area_px: float = LARGE_AREA_PX,
) -> NDArray[np.bool_]:
    """Tell which reference boxes belong to a size class, shape (samples,).

    Comparisons are strict, as in the released criterion: a box of exactly a threshold area is in no class
    that the threshold bounds.

    Raises:
        UserError: unknown class, or `small_area_px` above `large_area_px`.
    """
    if size not in SIZES:
        raise UserError(f"unknown size class {size!r}", fix=f"choose one of {', '.join(SIZES)}")
    if small_area_px > large_area_px:
        what = f"small_area_px {small_area_px:g} is above large_area_px {large_area_px:g}"
        raise UserError(what, fix="small boxes are below the first, large ones above the second")
    area = box_area(references)
    small, large = area < small_area_px, area > large_area_px
    not_small, not_large = area > small_area_px, area < large_area_px
    masks: dict[Size, NDArray[np.bool_]] = {
        "all": np.ones(len(area), dtype=np.bool_),
        "small": small,
        "medium": not_small & not_large,
        "large": large,
        "mediumsmall": not_large,
        "mediumlarge": not_small,
        "smalllarge": small | large,
    }
    return masks[size]


def box_accuracy(
    boxes: ArrayLike,
    references: ArrayLike,
    threshold: float = 0.5,
    *,
    size: Size = "all",
    small_area_px: float = SMALL_AREA_PX,
    large_area_px: float = LARGE_AREA_PX,
) -> Score:
    """Score 1 where the overlap is positive and IoU >= `threshold`, else 0.

    Samples outside `size` score 0 and stay in the denominator: small + medium + large is the overall accuracy
    (unless an area equals a threshold). For the accuracy within a class, index `per_sample` with `size_mask`.

    Raises:
        UserError: as `box_iou` and `size_mask`; no sample; a threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UserError(f"IoU threshold {threshold:g} is outside [0, 1]", fix="RefCOCO uses 0.5")
    overlap = box_iou(boxes, references)
    hit = (overlap > 0) & (overlap >= threshold)
    return mean_score(hit & size_mask(references, size, small_area_px, large_area_px))


def accuracy_by_size(
    boxes: ArrayLike,
    references: ArrayLike,
    threshold: float = 0.5,
    *,
    small_area_px: float = SMALL_AREA_PX,
    large_area_px: float = LARGE_AREA_PX,
) -> dict[str, float]:
    """Compute the accuracy of small, medium and large references with both denominators in use.

    `small_of_class` divides the hits among small references by the number of small references: the accuracy on small
    objects. `small_of_all` divides them by the number of all samples, as the released UnIVAL code and the size-wise
    numbers of rewarded soups do: a share of the overall accuracy, not an accuracy.

    Returns:
        `{size}_of_class`, `{size}_of_all` and `{size}_count` for small, medium and large; `of_class` is left out
        for a class without samples.

    Raises:
        UserError: as `box_accuracy`.
    """
    result: dict[str, float] = {}
    for size in ("small", "medium", "large"):
        hits = box_accuracy(
            boxes, references, threshold, size=size, small_area_px=small_area_px, large_area_px=large_area_px
        )
        count = int(size_mask(references, size, small_area_px, large_area_px).sum())
        if count:
            result[f"{size}_of_class"] = float(hits.per_sample.sum()) / count
        result[f"{size}_of_all"] = hits.value
        result[f"{size}_count"] = count
    return result


def _as_boxes(boxes: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise UserError(f"{name} has shape {array.shape}", fix="pass (samples, 4): x0, y0, x1, y1 in pixels")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise UserError("a coordinate is not finite", where=f"{name}[{row}]", fix="score the box as missed")
    return array
