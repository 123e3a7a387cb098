import numpy as np
import pytest

from unival.errors import UserError
from unival.metrics.iou import SIZES, accuracy_by_size, box_accuracy, box_area, box_iou, parse_box, size_mask


def test_iou_worked_by_hand() -> None:
    # Overlap 5 x 10 = 50 of 100 + 100 - 50. The + 1e-6 of the definition takes 2e-9 off.
    assert box_iou([[0, 0, 10, 10]], [[5, 0, 15, 10]])[0] == pytest.approx(50 / (150 + 1e-6), abs=1e-15)


def test_touching_and_empty_boxes_do_not_overlap() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 0, 0], [10, 10, 0, 0], [5, 5, 5, 9]]
    references = [[10, 0, 20, 10], [0, 0, 0, 0], [0, 0, 10, 10], [0, 0, 10, 10]]
    assert box_iou(boxes, references).tolist() == [0, 0, 0, 0]
    assert box_accuracy(boxes, references, threshold=0).value == 0


def test_areas_ignore_boxes_turned_inside_out() -> None:
    assert box_area([[0, 0, 2, 3], [2, 3, 0, 0], [0, 3, 2, 0]]).tolist() == [6, 0, 0]


def test_threshold_is_inclusive() -> None:
    overlap = float(box_iou([[0, 0, 10, 10]], [[0, 0, 10, 20]])[0])
    assert box_accuracy([[0, 0, 10, 10]], [[0, 0, 10, 20]], overlap).value == 1
    assert box_accuracy([[0, 0, 10, 10]], [[0, 0, 10, 20]], np.nextafter(overlap, 1)).value == 0


def test_small_medium_and_large_partition_areas_except_the_thresholds() -> None:
    sides = [[0, 0, side, 100] for side in (299, 300, 301, 999, 1000, 1001)]
    masks = {size: size_mask(sides, size).astype(int).tolist() for size in SIZES}
    assert masks == {
        "all": [1, 1, 1, 1, 1, 1],
        "small": [1, 0, 0, 0, 0, 0],
        "medium": [0, 0, 1, 1, 0, 0],
        "large": [0, 0, 0, 0, 0, 1],
        "mediumsmall": [1, 1, 1, 1, 0, 0],
        "mediumlarge": [0, 0, 1, 1, 1, 1],
        "smalllarge": [1, 0, 0, 0, 0, 1],
    }


def test_thresholds_can_be_set_for_other_image_sizes() -> None:
    assert size_mask([[0, 0, 8, 8], [0, 0, 30, 30]], "small", 100, 400).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3,4", (1, 2, 3, 4)),
        (" [1.5, -2, 3e2, .5] ", (1.5, -2, 300, 0.5)),
        ("(1 2 3 4)", (1, 2, 3, 4)),
        ("1,2,3", None),
        ("1,2,3,4,5", None),
        ("<bin_1> <bin_2> <bin_3> <bin_4>", None),
        ("a cat", None),
        ("", None),
    ],
)
def test_box_text(text: str, expected: tuple[float, ...] | None) -> None:
    assert parse_box(text) == expected


def test_wrong_input_is_a_user_error() -> None:
    box = [[0, 0, 1, 1]]
    with pytest.raises(UserError, match="shape"):
        box_iou([0, 0, 1, 1], box)
    with pytest.raises(UserError, match="1 boxes but 2 references"):
        box_iou(box, box * 2)
    with pytest.raises(UserError, match="finite") as caught:
        box_iou([*box, [0, 0, float("nan"), 1]], box * 2)
    assert caught.value.where == "boxes[1]"
    with pytest.raises(UserError, match="unknown size class 'huge'"):
        size_mask(box, "huge")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="is above"):
        size_mask(box, "small", 2, 1)
    with pytest.raises(UserError, match="threshold 50 "):
        box_accuracy(box, box, 50)
    with pytest.raises(UserError, match="no sample"):
        box_accuracy([], [])


def test_both_denominators_of_size_classes_are_named() -> None:
    # Areas 100, 40,000 and 160,000; the first two are found, the third is missed; a fourth is small and missed.
    references = [[0, 0, 10, 10], [0, 0, 200, 200], [0, 0, 400, 400], [0, 0, 10, 10]]
    boxes = [[0, 0, 10, 10], [0, 0, 200, 190], [0, 0, 10, 10], [50, 50, 60, 60]]
    found = accuracy_by_size(boxes, references)
    assert found == {
        "small_of_class": 0.5,
        "small_of_all": 0.25,
        "small_count": 2,
        "medium_of_class": 1.0,
        "medium_of_all": 0.25,
        "medium_count": 1,
        "large_of_class": 0.0,
        "large_of_all": 0.0,
        "large_count": 1,
    }
    shares = sum(found[f"{size}_of_all"] for size in ("small", "medium", "large"))
    assert shares == box_accuracy(boxes, references).value


def test_a_class_without_samples_has_no_accuracy_of_its_own() -> None:
    found = accuracy_by_size([[0, 0, 10, 10]], [[0, 0, 10, 10]], threshold=0.9)
    assert (found["small_of_class"], found["large_of_all"], found["large_count"]) == (1.0, 0.0, 0)
    assert "large_of_class" not in found
