"""Random changes of media: values of the operations, crops, boxes, and that everything comes from one generator."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from unival.data import augment
from unival.data.augment import (
    BOX_PX,
    OPERATIONS,
    augment_row,
    autocontrast,
    brighten,
    equalize,
    pretrain_image,
    pretrain_region,
    random_augment,
    resize_short,
    rotation,
    sharpen,
    train_video,
    warp,
)


class Sizes:
    image_px, video_px, num_frames, sample_rate, audio_seconds = 32, 16, 4, 8000, 0.5


def noise(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 200, (height, width, 3)).astype(np.uint8)


def test_tables_equal_those_of_pillow() -> None:
    pixels = noise()
    for ours, theirs in ((autocontrast, ImageOps.autocontrast), (equalize, ImageOps.equalize)):
        assert np.array_equal(ours(pixels), theirs(Image.fromarray(pixels)))
    flat = np.full((8, 8, 3), 77, np.uint8)
    assert np.array_equal(autocontrast(flat), flat)
    assert np.array_equal(equalize(flat), flat)
    assert brighten(np.array([[[0, 100, 250]]], np.uint8), 1.36).tolist() == [[[0, 136, 255]]]


def test_sharpening_leaves_the_border_and_flat_parts() -> None:
    pixels = np.full((5, 5, 3), 100, np.uint8)
    assert np.array_equal(sharpen(pixels, 1.36), pixels)
    pixels[2, 2] = 113  # blurred: (8 * 100 + 5 * 113) / 13 = 105
    out = sharpen(pixels, 2.0)
    assert out[2, 2].tolist() == [121] * 3
    assert out[1, 1].tolist() == [99] * 3  # blurred 101
    assert np.array_equal(out[0], pixels[0])


def test_whole_shifts_move_pixels_and_let_grey_in() -> None:
    pixels = noise()
    moved = warp(pixels, np.array([[1, 0, 7], [0, 1, -3]]))
    assert np.array_equal(moved[:-3, 7:], pixels[3:, :-7])
    assert (moved[-3:] == 128).all()
    assert (moved[:, :7] == 128).all()


def test_half_a_pixel_is_the_mean_of_two() -> None:
    pixels = np.zeros((1, 4, 3), np.uint8)
    pixels[0, :, 0] = [0, 100, 200, 60]
    assert warp(pixels, np.array([[1, 0, -0.5], [0, 1, 0]]))[0, :, 0].tolist() == [50, 150, 130, 94]


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    pixels = noise(33, 33)
    centre = rotation(90, 32, 32)  # about (16, 16), the middle pixel
    assert np.array_equal(warp(pixels, centre), np.rot90(pixels))


def test_affine_maps_equal_those_of_opencv() -> None:
    cv2: Any = pytest.importorskip("cv2")
    pixels = noise(48, 64)
    for forward in (
        np.array([[1, 0.21, 0], [0, 1, 0]]),
        np.array([[1, 0, 0], [-0.21, 1, 0]]),
        rotation(21, 64, 48),
        rotation(-21, 64, 48),
    ):
        theirs = cv2.warpAffine(pixels, forward, (64, 48), borderValue=(128, 128, 128))
        assert np.abs(theirs.astype(int) - warp(pixels, forward)).max() <= (0 if cv2.__version__ < "5" else 4)
    assert np.allclose(cv2.getRotationMatrix2D((32, 24), 21, 1), rotation(21, 64, 48))


@pytest.mark.parametrize(
    ("size", "expected"), [((100, 50), (80, 40)), ((50, 120), (40, 96)), ((3000, 100), (672, 40)), ((40, 40), (40, 40))]
)
def test_the_short_side_is_resized_and_the_long_one_clipped(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resize_short(Image.new("RGB", size), 40).size == expected


def test_a_picture_is_cut_to_size_and_nothing_else_is_random(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(noise(60, 90))
    first, second, other = (pretrain_image(image, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    monkeypatch.setattr(augment, "random_short_px", lambda side, rng: side)
    monkeypatch.setattr(augment, "OP_PROBABILITY", -1.0)
    whole = np.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(pretrain_image(image, 32, np.random.default_rng(0)), whole[:, 8:40])


@pytest.mark.parametrize("seed", range(8))
def test_a_region_stays_what_it_was(seed: int) -> None:
    """A red block in a blue picture: the moved box holds the red pixels of the crop."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((90, 120, 3), np.uint8)
    x0, y0 = int(rng.integers(0, 100)), int(rng.integers(0, 70))
    x1, y1 = x0 + int(rng.integers(8, 20)), y0 + int(rng.integers(8, 20))
    pixels[y0:y1, x0:x1, 0] = 255
    crop, box = pretrain_region(Image.fromarray(pixels), (x0, y0, x1, y1), 64, rng)
    assert crop.shape == (64, 64, 3)
    rows, columns = np.nonzero(crop[..., 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - box).max() <= 1.5


def test_operations_keep_shape_and_type() -> None:
    for operation in OPERATIONS:
        for sign in (-1.0, 1.0):
            out = operation(noise(), sign)
            assert (out.shape, out.dtype) == ((40, 56, 3), np.uint8)
    draws = [random_augment(noise(), np.random.default_rng(seed)) for seed in range(40)]
    unchanged = sum(np.array_equal(draw, noise()) for draw in draws)
    assert 0.1 < unchanged / 40 < 0.6  # (0.5 + 0.5 / 10) ** 2 = 0.30 do nothing


@pytest.mark.parametrize("ops_first", [False, True])
def test_all_frames_of_a_clip_change_alike(ops_first: bool) -> None:
    clip = np.repeat(noise()[None], 5, axis=0)
    out = train_video(clip, 24, np.random.default_rng(3), ops_first=ops_first)
    assert (out.shape, out.dtype) == ((5, 24, 24, 3), np.uint8)
    assert all(np.array_equal(frame, out[0]) for frame in out)
    assert np.array_equal(out, train_video(clip, 24, np.random.default_rng(3), ops_first=ops_first))


def test_rows_are_changed_by_kind() -> None:
    stream = Image.fromarray(noise(64, 64))
    row = {"uid": "1", "image": np.asarray(stream), "text": "a", "box": [8, 8, 40, 40], "width": 64, "height": 64}
    out = augment_row(row, "image", "pretrain", Sizes, np.random.default_rng(0))
    assert (out["image"].shape, out["width"], out["media_id"]) == ((32, 32, 3), BOX_PX, "1")
    assert row["box"] == [8, 8, 40, 40]
    same = augment_row(row, "image", "finetune", Sizes, np.random.default_rng(0))
    assert same["image"] is row["image"]
    assert same["box"] == row["box"]
