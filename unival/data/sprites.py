"""Draw sprites on a canvas: exact size, optional augmentation, alpha-tight boxes.

A sprite is a PIL image of mode RGBa (premultiplied alpha), so resizing and rotating never bleed dark edges.
Only integer filters of PIL and element-wise float32 arithmetic are used, so pixels do not depend on the
machine.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

BACKGROUNDS = {
    "white": (255, 255, 255),
    "grey": (196, 198, 202),
    "yellow": (250, 238, 160),
    "orange": (252, 208, 152),
    "pink": (252, 208, 222),
    "green": (192, 232, 190),
    "blue": (184, 214, 248),
    "purple": (216, 196, 242),
}
"""Clearly named soft background colours, RGB."""

_VISIBLE, _TRACE = (
    80.0,
    4.0,
)  # alpha of 255 from which a pixel counts for the box; from which it is kept at all
_MAX_ROTATION_DEGREES, _MAX_ASPECT = 12.0, 0.12


@dataclass(frozen=True, slots=True)
class Jitter:
    """Appearance of one drawn sprite; the default changes nothing.

    colour: 3x3 matrix and `offset` added per channel in 0..255; blur_px: Gaussian radius; detail: the
    sprite is resampled at this fraction of its size.
    """

    rotation_degrees: float = 0.0
    aspect: float = 1.0
    colour: tuple[tuple[float, ...], ...] | None = None
    offset: float = 0.0
    blur_px: float = 0.0
    detail: float = 1.0


PLAIN = Jitter()


def draw_jitter(rng: np.random.Generator) -> Jitter:
    """Draw a random appearance: rotation, aspect, colour, and for some sprites blur or loss of detail."""
    u = rng.random(8).tolist()
    kind = u[6]
    return Jitter(
        rotation_degrees=(2 * u[0] - 1) * _MAX_ROTATION_DEGREES,
        aspect=math.exp((2 * u[1] - 1) * math.log1p(_MAX_ASPECT)),
        colour=_colour_matrix(contrast=0.8 + 0.4 * u[2], saturation=0.6 + 0.8 * u[3], hue=(2 * u[4] - 1) * 0.16),
        offset=(2 * u[5] - 1) * 26.0,
        blur_px=0.5 + 0.6 * u[7] if kind < 0.12 else 0.0,
        detail=0.5 + 0.4 * u[7] if kind > 0.88 else 1.0,
    )


def _colour_matrix(contrast: float, saturation: float, hue: float) -> tuple[tuple[float, ...], ...]:
    """Return contrast x saturation x hue rotation (radians, about grey; Rec. 601 luma weights)."""
    cosine, sine = math.cos(hue), math.sin(hue)
    third, root = (1 - cosine) / 3, sine / math.sqrt(3)
    turn = (
        (cosine + third, third - root, third + root),
        (third + root, cosine + third, third - root),
        (third - root, third + root, cosine + third),
    )
    luma = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in zip(*turn, strict=True)]
    grey = [(1 - saturation) * value for value in luma]
    return tuple(tuple(contrast * (saturation * row[j] + grey[j]) for j in range(3)) for row in turn)


def transform(sprite: Image.Image, size_px: float, jitter: Jitter = PLAIN) -> np.ndarray:
    """Return a sprite whose longer side is at most `size_px`: float32 (4, h, w), premultiplied."""
    radians = math.radians(jitter.rotation_degrees)
    cosine, sine = math.cos(radians), math.sin(radians)
    stretch = math.sqrt(jitter.aspect)
    width, height = sprite.width * stretch, sprite.height / stretch
    full_width = width * cosine + height * abs(sine)
    full_height = width * abs(sine) + height * cosine
    scale = size_px / max(full_width, full_height)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    if jitter.detail < 1:
        sprite = sprite.resize(
            (max(4, round(target[0] * jitter.detail)), max(4, round(target[1] * jitter.detail))),
            Image.Resampling.BILINEAR,
        )
    image = sprite.resize(target, Image.Resampling.BICUBIC)
    if jitter.rotation_degrees:
        image = _rotate(image, cosine, sine, math.ceil(full_width * scale), math.ceil(full_height * scale))
    if jitter.blur_px:
        image = image.filter(ImageFilter.GaussianBlur(jitter.blur_px))
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32)
    if jitter.colour is not None:
        _recolour(pixels, jitter.colour, jitter.offset)
    return pixels


def _rotate(image: Image.Image, cosine: float, sine: float, width: int, height: int) -> Image.Image:
    x, y = width / 2, height / 2
    coefficients = (
        cosine, sine, image.width / 2 - cosine * x - sine * y,
        -sine, cosine, image.height / 2 + sine * x - cosine * y,
    )  # fmt: skip
    return image.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _recolour(pixels: np.ndarray, matrix: tuple[tuple[float, ...], ...], offset: float) -> None:
    """Apply a colour matrix around mid grey in place; colours stay within the alpha (premultiplied)."""
    weights = np.array([[*row, ((1 - sum(row)) * 128 + offset) / 255] for row in matrix], np.float32)
    planes = pixels.reshape(4, -1)
    mixed = weights[:, :1] * planes[0]
    for i in range(1, 4):
        mixed += weights[:, i : i + 1] * planes[i]
    np.minimum(mixed, planes[3], out=mixed)
    np.maximum(mixed, 0, out=planes[:3])


def trim(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Cut empty borders off; return the pixels and the tight box (x0, y0, x1, y1) in them."""
    rows, columns = pixels[3].max(1), pixels[3].max(0)
    y0, y1 = _extent(rows, _TRACE)
    x0, x1 = _extent(columns, _TRACE)
    top, bottom = _extent(rows, _VISIBLE)
    left, right = _extent(columns, _VISIBLE)
    return pixels[:, y0:y1, x0:x1], (left - x0, top - y0, right - x0, bottom - y0)


def tight_box(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1) of what is visible in pixels (4, h, w)."""
    top, bottom = _extent(pixels[3].max(1), _VISIBLE)
    left, right = _extent(pixels[3].max(0), _VISIBLE)
    return left, top, right, bottom


def _extent(profile: np.ndarray, threshold: float) -> tuple[int, int]:
    inside = profile >= min(threshold, float(profile.max()))
    return int(inside.argmax()), len(inside) - int(inside[::-1].argmax())


def background(rng: np.random.Generator, colour: str, image_px: int) -> np.ndarray:
    """Return a canvas of one colour with faint noise: float32 (3, image_px, image_px)."""
    noise = np.frombuffer(rng.bytes(3 * image_px * image_px), np.uint8).reshape(3, image_px, image_px)
    canvas = (noise & 7).astype(np.float32)
    canvas += np.array(BACKGROUNDS[colour], np.float32)[:, None, None] - np.float32(3.5)
    return canvas


def paste(canvas: np.ndarray, pixels: np.ndarray, x: int, y: int) -> None:
    """Blend premultiplied pixels over the canvas with their top left corner at (x, y), in place."""
    _, height, width = pixels.shape
    region = canvas[:, y : y + height, x : x + width]
    region *= 1 - pixels[3] * np.float32(1 / 255)
    region += pixels[:3]


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """Round and clip a float canvas (3, h, w) to a picture, uint8 (h, w, 3)."""
    canvas += np.float32(0.5)
    np.clip(canvas, 0, 255, out=canvas)
    return np.ascontiguousarray(canvas.astype(np.uint8).transpose(1, 2, 0))
