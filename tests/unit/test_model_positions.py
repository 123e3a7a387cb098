"""Position ids and relative buckets: the check values of the specification (section 2.5), and what does not fit."""

import math
import random

import pytest
import torch

from unival.model.positions import (
    audio_ids,
    code_ids,
    draw_tokens,
    grid_ids,
    image_buckets,
    num_image_buckets,
    resized_grid,
    text_buckets,
)

# (query, key): bucket, for a bucket size of 256 and 1024 positions.
TEXT_CHECKS = {
    (0, 0): 255,
    (0, 1): 254,
    (0, 10): 245,
    (0, 127): 128,
    (0, 128): 127,
    (0, 129): 126,
    (0, 130): 126,
    (0, 150): 117,
    (0, 200): 99,
    (0, 255): 84,
    (0, 300): 74,
    (0, 400): 57,
    (0, 500): 43,
    (0, 511): 42,
    (0, 700): 23,
    (0, 900): 7,
    (0, 1000): 1,
    (0, 1023): 0,
    (1, 0): 256,
    (128, 0): 383,
    (129, 0): 384,
    (200, 0): 411,
    (512, 0): 468,
    (1023, 0): 510,
}
IMAGE_CHECKS = {
    (1, 1): 3444,
    (1, 2): 3443,
    (2, 1): 3445,
    (1, 43): 3361,
    (1764, 1): 6888,
    (0, 1): 6889,
    (0, 1764): 6889,
    (1, 0): 6890,
    (1764, 0): 6890,
    (0, 0): 6891,
}


@pytest.mark.parametrize(("pair", "bucket"), TEXT_CHECKS.items())
def test_text_buckets_have_the_specified_values(pair: tuple[int, int], bucket: int) -> None:
    assert int(text_buckets(256, 1024)[pair]) == bucket


def test_text_buckets_sum_to_the_recorded_buffer() -> None:
    table = text_buckets(256, 1024)
    assert table.shape == (1024, 1024)
    assert int(table.sum()) == 267386880
    assert int((table**2).sum()) == 100549902978


@pytest.mark.parametrize(("bucket_size", "num_positions"), [(4, 16), (8, 64), (32, 128), (256, 1024)])
def test_text_buckets_depend_on_distance_only_and_grow_with_it(bucket_size: int, num_positions: int) -> None:
    table = text_buckets(bucket_size, num_positions)
    assert int(table.min()) == 0
    assert int(table.max()) == 2 * bucket_size - 2
    assert torch.equal(table[1:, 1:], table[:-1, :-1])  # a function of query - key
    column = table[:, 0]
    assert bool((column.diff() >= 0).all())
    assert torch.equal(table + table.T, torch.full_like(table, 2 * (bucket_size - 1)))  # mirrored
    near = bucket_size // 2
    assert torch.equal(column[:near], torch.arange(near) + bucket_size - 1)  # a bucket for every near distance


@pytest.mark.parametrize(("pair", "bucket"), IMAGE_CHECKS.items())
def test_image_buckets_have_the_specified_values(pair: tuple[int, int], bucket: int) -> None:
    assert int(image_buckets(42)[pair]) == bucket


def test_image_buckets_sum_to_the_recorded_buffer() -> None:
    table = image_buckets(42)
    assert table.shape == (1765, 1765)
    assert int(table.sum()) == 10740994071
    assert int(table.max()) + 1 == num_image_buckets(42) == 6892


def test_grid_ids_count_cells_of_the_large_grid_and_ignore_time() -> None:
    assert grid_ids(1, 2, 3, 42).tolist() == [1, 2, 3, 43, 44, 45]
    assert grid_ids(2, 1, 2, 42).tolist() == [1, 2, 1, 2]


def test_audio_tokens_lie_on_the_smallest_square_that_holds_them() -> None:
    ids = audio_ids(150, 42)
    assert len(ids) == 150
    assert ids[:14].tolist() == [*range(1, 14), 43]  # rows of 13
    assert int(ids[149]) == 149 // 13 * 42 + 149 % 13 + 1
    assert len(set(ids.tolist())) == 150
    assert audio_ids(169, 42).max() == 12 * 42 + 13


def test_picture_codes_start_at_zero_and_fill_a_grid() -> None:
    assert code_ids(1, 32, 6).tolist() == [0]
    assert code_ids(7, 32, 6).tolist() == [0, 1, 2, 3, 4, 7, 8]
    ids = code_ids(257, 128, 42)
    assert int(ids.sum()) == sum(r * 42 + c + 1 for r in range(16) for c in range(16)) == 82816


def test_a_picture_of_more_codes_than_the_table_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"16x16 codes does not fit the position table of 12x12.*image_bucket_size"):
        code_ids(2, 128, 12)


def test_a_feature_map_larger_than_the_table_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"7x3 does not fit the position table of 6x6.*image_bucket_size"):
        grid_ids(1, 7, 3, 6)
    with pytest.raises(ValueError, match="37 audio tokens do not fit the position table of 6x6"):
        audio_ids(37, 6)
    assert len(audio_ids(36, 6)) == 36
    assert math.isqrt(36) == 6


def test_tables_made_while_predicting_can_be_used_in_training() -> None:
    with torch.inference_mode():
        tables = [text_buckets(5, 31), image_buckets(3)]
    assert not any(table.is_inference() for table in tables)
    weight = torch.zeros(100, 2, requires_grad=True)
    weight[tables[0]].sum().backward()
    assert weight.grad is not None


def test_a_grid_resized_to_its_own_size_is_the_table() -> None:
    table = torch.rand(26, 3)
    ids = grid_ids(1, 4, 4, 5)
    torch.testing.assert_close(resized_grid(table, 4, 4, side=4, grid_size=5), table[ids])


def test_a_resized_grid_is_interpolated_between_cell_centres() -> None:
    table = torch.zeros(10, 1)
    table[1:, 0] = torch.tensor([0.0, 4.0, 99.0, 8.0, 12.0, 99.0, 99.0, 99.0, 99.0])  # the 2 x 2 cells at the corner
    resized = resized_grid(table, 2, 4, side=2, grid_size=3).reshape(2, 4)
    torch.testing.assert_close(resized, torch.tensor([[0.0, 1.0, 3.0, 4.0], [8.0, 9.0, 11.0, 12.0]]))


def test_drawn_tokens_are_different_ones_in_the_order_of_pythons_generator() -> None:
    random.seed(3)
    drawn = draw_tokens(2, 30, 5)
    random.seed(3)
    assert drawn.tolist() == [random.sample(range(30), 5), random.sample(range(30), 5)]
    assert all(len(set(row)) == 5 for row in drawn.tolist())
