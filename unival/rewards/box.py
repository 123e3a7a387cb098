"""Rewards of boxes, for objects of all sizes or of one."""

from collections.abc import Sequence

import numpy as np

from unival.errors import UserError
from unival.metrics import iou as boxes
from unival.rewards.record import Record, Rewards, empty, field, fields

BoxPrediction = str | Sequence[float] | None

_NO_BOX = (0.0, 0.0, 0.0, 0.0)  # what unreadable text is taken for: an empty box overlaps nothing


def iou(
    predictions: Sequence[BoxPrediction],
    records: Sequence[Record],
    *,
    size: boxes.Size = "all",
    small_area_px: float = boxes.SMALL_AREA_PX,
    large_area_px: float = boxes.LARGE_AREA_PX,
    num_bins: int = 0,
) -> Rewards:
    """Score the IoU of a box in pixels, as text "x0,y0,x1,y1" or four numbers, or of position tokens.

    An unreadable text, None, or a reference that is not of `size` scores 0. Position tokens are read with `num_bins`
    and the `width` and `height` of the record.

    Raises:
        UserError: a text with position tokens, and `num_bins` is 0.
    """
    predicted, references = _boxes(predictions, records, num_bins)
    is_of_size = boxes.size_mask(references, size, small_area_px, large_area_px)
    return boxes.box_iou(predicted, references) * is_of_size


def box_accuracy(
    predictions: Sequence[BoxPrediction],
    records: Sequence[Record],
    *,
    threshold: float = 0.5,
    size: boxes.Size = "all",
    small_area_px: float = boxes.SMALL_AREA_PX,
    large_area_px: float = boxes.LARGE_AREA_PX,
    num_bins: int = 0,
) -> Rewards:
    """Score 1 for IoU >= `threshold` with a reference of `size`, the rewards of the grounding soups.

    Predictions and errors are those of `iou`.
    """
    predicted, references = _boxes(predictions, records, num_bins)
    if not predictions:
        return empty()
    sizes = {"size": size, "small_area_px": small_area_px, "large_area_px": large_area_px}
    return boxes.box_accuracy(predicted, references, threshold, **sizes).per_sample


def _boxes(predictions: Sequence[BoxPrediction], records: Sequence[Record], num_bins: int) -> tuple[Rewards, Rewards]:
    """Read predicted and reference boxes, both (samples, 4)."""
    references = fields(predictions, records, "box")
    predicted = [_box(prediction, record, num_bins) for prediction, record in zip(predictions, records, strict=True)]
    return np.array(predicted).reshape(-1, 4), np.array(references, dtype=np.float64).reshape(-1, 4)


def _box(prediction: BoxPrediction, record: Record, num_bins: int) -> Sequence[float]:
    if not isinstance(prediction, str):
        return _NO_BOX if prediction is None else prediction
    if "<bin_" not in prediction:
        return boxes.parse_box(prediction) or _NO_BOX
    if not num_bins:  # would score 0 for every sample, unnoticed
        fix = "pass what the grounding task's parse() returns, or give num_bins"
        raise UserError("a box reward needs pixels, not position tokens", where=repr(prediction[:60]), fix=fix)
    from unival.model.tokenizer import text_to_box  # transformers: not for workers and captions

    return text_to_box(prediction, field(record, "width"), field(record, "height"), num_bins) or _NO_BOX
