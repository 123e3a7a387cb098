"""Random changes of media in training, as in the original's pretraining and fine-tuning (specification 4.7, 4.10).

Everything is drawn from the generator that is passed in, so a batch is a function of its number. The original draws
from numpy's global generator, which it seeds anew for every item, so that all samples of an epoch get the same
operations; that is not repeated here.
"""

from collections.abc import Callable, Mapping
from math import cos, radians, sin
from typing import Any, Literal

import numpy as np
from PIL import Image

from unival.data.audio import fit_length, load_audio
from unival.data.image import load_image
from unival.data.video import load_video

Kind = Literal["pretrain", "finetune"]
MAX_SHORT_PX, MAX_LONG_PX = 480, 672
BOX_PX = 512  # boxes are told apart in 1/512 of a side, whatever the crop
FILL = 128
NUM_OPS, MAGNITUDE, MAX_MAGNITUDE = 2, 7, 10
OP_PROBABILITY = 0.5

Pixels = np.ndarray  # uint8 (H, W, 3)


def augment_row(
    row: Mapping[str, Any], modality: str, kind: Kind, sizes: Any, rng: np.random.Generator
) -> dict[str, Any]:
    """Return a row with its medium decoded and changed at random, and its box moved along.

    Pictures are changed as `pretrain_image`, those with a box as `pretrain_region` (in fine-tuning not at all); clips
    as `train_video`, with random frames; of a sound that is too long, a random part stays.

    Args:
        row: Of any source.
        modality: Names the column of the medium.
        kind: Whose transform.
        sizes: Has the fields `image_px`, `video_px`, `num_frames`, `sample_rate` and `audio_seconds` of a processor.
        rng: Draws all of it.

    Raises:
        UserError: The medium cannot be decoded.
    """
    row = dict(row)
    medium = row.get(modality)
    if modality == "image" and "box" in row:
        if kind == "pretrain":
            row["image"], row["box"] = pretrain_region(load_image(row["image"]), row["box"], sizes.image_px, rng)
            row["width"] = row["height"] = BOX_PX
    elif modality == "image":
        row["image"] = pretrain_image(load_image(row["image"]), sizes.image_px, rng)
    elif modality == "video":
        frames = load_video(row["video"], sizes.num_frames, "random", rng)
        row["video"] = train_video(frames, sizes.video_px, rng, ops_first=kind == "finetune")
    elif modality == "audio":
        samples = load_audio(row["audio"], sizes.sample_rate)
        num_samples = int(sizes.sample_rate * sizes.audio_seconds)
        row["audio"] = (
            fit_length(samples, num_samples, crop="random", rng=rng) if len(samples) > num_samples else samples
        )
    row.setdefault("media_id", medium if isinstance(medium, str) else row["uid"])
    return row


def pretrain_image(image: Image.Image, side: int, rng: np.random.Generator) -> Pixels:
    """Resize the short side to a random size from `side` to 480, cut out the centre, change it; (side, side, 3)."""
    image = resize_short(image, random_short_px(side, rng))
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return random_augment(np.asarray(image.crop((left, top, left + side, top + side))), rng)


def pretrain_region(
    image: Image.Image, box: tuple[float, float, float, float], side: int, rng: np.random.Generator
) -> tuple[Pixels, list[float]]:
    """Resize as `pretrain_image`, and cut out a square around the box, inside the picture.

    Args:
        image: The picture.
        box: x0, y0, x1, y1 in its pixels.
        side: Of the square.
        rng: Draws the size.

    Returns:
        The square, uint8 (side, side, 3), and the part of the box that lies in it, in its pixels.
    """
    resized = resize_short(image, random_short_px(side, rng))
    ratios = resized.width / image.width, resized.height / image.height
    box_px = [value * ratios[axis % 2] for axis, value in enumerate(box)]
    corner = []
    for axis, length in enumerate(resized.size):
        middle = (box_px[axis] + box_px[axis + 2]) / 2
        corner.append(int(min(max(middle - side / 2, 0), max(length - side, 0))))
    left, top = corner
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)))
    moved = [min(max(value - corner[axis % 2], 0.0), float(side)) for axis, value in enumerate(box_px)]
    return pixels, moved


def train_video(frames: np.ndarray, side: int, rng: np.random.Generator, *, ops_first: bool = False) -> np.ndarray:
    """Change a whole clip alike: random crop of half to all of its area, mirroring, RandAugment.

    Args:
        frames: uint8 (F, H, W, 3).
        side: Of the result, uint8 (F, side, side, 3).
        rng: Draws all of it.
        ops_first: RandAugment comes before the crop, as in fine-tuning; in pretraining it comes last.
    """
    import torch
    from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop
    from torchvision.transforms.functional import hflip

    clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.manual_seed(int(rng.integers(2**31)))
        augment = RandAugment()
        crop = RandomResizedCrop(side, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True)
        clip = crop(augment(clip)) if ops_first else crop(clip)
        clip = hflip(clip) if rng.random() < 0.5 else clip
        clip = clip if ops_first else augment(clip)
    return clip.permute(0, 2, 3, 1).contiguous().numpy()


def random_short_px(side: int, rng: np.random.Generator) -> int:
    """Draw a size from `side` to 480, both included."""
    return int(rng.integers(side, max(side, MAX_SHORT_PX) + 1))


def resize_short(image: Image.Image, short_px: int) -> Image.Image:
    """Resize the short side (bicubic); a long side above 672 is clipped, which squeezes the picture."""
    width, height = image.size
    longest = max(MAX_LONG_PX, short_px)
    if width < height:
        size = short_px, min(int(short_px * height / width), longest)
    else:
        size = min(int(short_px * width / height), longest), short_px
    return image.resize(size, Image.Resampling.BICUBIC)


def random_augment(pixels: Pixels, rng: np.random.Generator, num_ops: int = NUM_OPS) -> Pixels:
    """Apply operations drawn with replacement, each with probability 0.5 and magnitude 7 of 10."""
    for number in rng.integers(0, len(OPERATIONS), num_ops):
        if rng.random() <= OP_PROBABILITY:
            sign = -1.0 if rng.random() > 0.5 else 1.0
            pixels = OPERATIONS[number](pixels, sign)
    return pixels


def autocontrast(pixels: Pixels) -> Pixels:
    """Stretch every channel to 0-255."""
    out = np.empty_like(pixels)
    for channel in range(pixels.shape[2]):
        values = pixels[..., channel]
        low, high = int(values.min()), int(values.max())
        steps = np.arange(256, dtype=np.float64)
        scale = 255.0 / max(high - low, 1)
        table = (steps * scale - low * scale).clip(0, 255) if high > low else steps
        out[..., channel] = table.astype(np.uint8)[values]
    return out


def equalize(pixels: Pixels) -> Pixels:
    """Flatten the histogram of every channel."""
    out = pixels.copy()
    for channel in range(pixels.shape[2]):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = int(counts[counts > 0][:-1].sum()) // 255
        if step:
            before = np.concatenate([[step // 2], counts[:-1]]).cumsum()
            out[..., channel] = (before // step).clip(0, 255).astype(np.uint8)[pixels[..., channel]]
    return out


def brighten(pixels: Pixels, factor: float) -> Pixels:
    """Multiply by a factor, cut at 255."""
    return (np.arange(256) * factor).clip(0, 255).astype(np.uint8)[pixels]


def sharpen(pixels: Pixels, factor: float) -> Pixels:
    """Move away from the blurred picture; the outermost pixels stay. Values are cut at 0 and 255, not wrapped."""
    wide = pixels.astype(np.float32)
    blurred = 4.0 * wide[1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            blurred += wide[row : row + wide.shape[0] - 2, column : column + wide.shape[1] - 2]
    blurred = np.rint(blurred / 13.0)
    wide[1:-1, 1:-1] = blurred + factor * (wide[1:-1, 1:-1] - blurred)
    return wide.clip(0, 255).astype(np.uint8)


def warp(pixels: Pixels, forward: np.ndarray) -> Pixels:
    """Move pixels by an affine map (2, 3) from source to target (x, y); grey comes in from outside.

    Positions are rounded to 1/32 pixel and interpolated bilinearly with integer weights, as `cv2.warpAffine` does.
    """
    height, width = pixels.shape[:2]
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    columns, rows = np.arange(width), np.arange(height)
    places = []
    for axis in (0, 1):
        along = np.rint(back[axis, 0] * columns * 1024).astype(np.int64)
        start = np.rint((back[axis, 1] * rows + back[axis, 2]) * 1024).astype(np.int64) + 16
        places.append((start[:, None] + along[None, :]) >> 5)
    whole = [np.clip(place >> 5, -2, size) + 2 for place, size in zip(places, (width, height), strict=True)]
    part_x, part_y = (place[..., None] & 31 for place in places)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), constant_values=FILL).astype(np.int32)
    x, y = whole
    top = padded[y, x] * (32 - part_x) + padded[y, x + 1] * part_x
    bottom = padded[y + 1, x] * (32 - part_x) + padded[y + 1, x + 1] * part_x
    return ((top * (32 - part_y) + bottom * part_y + 512) >> 10).astype(np.uint8)


def rotation(degrees: float, width: int, height: int) -> np.ndarray:
    """Return the map (2, 3) that turns counter-clockwise about the centre."""
    x, y = width / 2, height / 2
    c, s = cos(radians(degrees)), sin(radians(degrees))
    return np.array([[c, s, (1 - c) * x - s * y], [-s, c, s * x + (1 - c) * y]])


_STRENGTH = MAGNITUDE / MAX_MAGNITUDE
_FACTOR = 1.8 * _STRENGTH + 0.1
_SHEAR, _SHIFT_PX, _TURN = 0.3 * _STRENGTH, 10.0 * _STRENGTH, 30.0 * _STRENGTH
# Each takes pixels and a sign, which half of them do not use.
OPERATIONS: tuple[Callable[[Any, float], Any], ...] = (
    lambda pixels, sign: pixels,
    lambda pixels, sign: autocontrast(pixels),
    lambda pixels, sign: equalize(pixels),
    lambda pixels, sign: brighten(pixels, _FACTOR),
    lambda pixels, sign: sharpen(pixels, _FACTOR),
    lambda pixels, sign: warp(pixels, np.array([[1, sign * _SHEAR, 0], [0, 1, 0]])),
    lambda pixels, sign: warp(pixels, np.array([[1, 0, 0], [sign * _SHEAR, 1, 0]])),
    lambda pixels, sign: warp(pixels, np.array([[1, 0, -sign * _SHIFT_PX], [0, 1, 0]])),
    lambda pixels, sign: warp(pixels, np.array([[1, 0, 0], [0, 1, -sign * _SHIFT_PX]])),
    lambda pixels, sign: warp(pixels, rotation(sign * _TURN, pixels.shape[1], pixels.shape[0])),
)
