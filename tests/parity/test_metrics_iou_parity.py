"""Area-filtered accuracy against the values of the released UnIVAL grounding criterion, worked out once."""

import numpy as np
import pytest

from unival.metrics.iou import Size, box_accuracy, box_iou

BOXES = [[10, 10, 110, 60], [0, 0, 50, 50], [5, 5, 400, 390], [0, 0, 10, 10]]
REFERENCES = [[0, 0, 100, 60], [30, 30, 90, 90], [0, 0, 400, 400], [20, 20, 40, 40]]


def test_iou_equals_the_released_code_on_overlapping_boxes() -> None:
    # The released code gives 0.25 for the last, disjoint pair (two negative extents multiplied); ours is 0.
    expected = [0.692308, 0.070175, 0.950469, 0.0]
    np.testing.assert_allclose(box_iou(BOXES, REFERENCES), expected, rtol=0, atol=5e-7)  # stored with 6 decimals


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("all", [1, 0, 1, 0]),
        ("small", [1, 0, 0, 0]),
        ("large", [0, 0, 1, 0]),
        ("smalllarge", [1, 0, 1, 0]),
        ("medium", [0, 0, 0, 0]),
        ("mediumsmall", [1, 0, 0, 0]),
        ("mediumlarge", [0, 0, 1, 0]),
    ],
)
def test_accuracy_by_size_equals_the_released_code(size: Size, expected: list[int]) -> None:
    score = box_accuracy(BOXES, REFERENCES, 0.5, size=size)
    assert score.per_sample.tolist() == expected
    assert score.value == sum(expected) / 4  # samples of other sizes stay in the denominator
