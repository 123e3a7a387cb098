"""Read a picture of any common format into upright 8-bit RGB."""

import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from unival.data.media import MediaSource, looks_like_text, open_media
from unival.errors import UserError

MAX_PIXELS = 50_000_000
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 are turned by a quarter
# Pillow also opens PostScript, by running Ghostscript, and formats that nobody sends: only these are tried.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
# What Pillow raised on tens of thousands of damaged files; a decoder has no narrower promise.
_DAMAGED = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    RuntimeError,
    OverflowError,
    struct.error,
)


def load_image(source: MediaSource | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return an upright RGB picture: EXIF orientation applied, blended on white, first frame of several.

    Args:
        source: Path, file content, open binary file, Pillow image, or uint8 array (H, W), (H, W, 3) or (H, W,
            4).
        max_pixels: Refuse a larger picture before decoding it: ten kilobytes of PNG can hold 81 megapixels.

    Raises:
        UserError: Names the file and says whether it is missing, no image, damaged or too large.
    """
    if isinstance(source, np.ndarray):
        source = _image_of_array(source)
    if isinstance(source, Image.Image):
        _check_size(source.size, max_pixels, "<image>")
        return _to_upright_rgb(source.copy())  # the caller's own stays as it is
    stream, name = open_media(source, "image")
    try:
        return _decode(stream, name, max_pixels)
    finally:
        if isinstance(source, str | Path | bytes):
            stream.close()


def load_pixels(source: MediaSource | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return what `load_image` does as a writable array (H, W, 3); twice as fast for JPEG, which skips Pillow's copies.

    Raises:
        UserError: As `load_image`.
    """
    if isinstance(source, np.ndarray | Image.Image):
        return np.array(load_image(source, max_pixels))
    stream, name = open_media(source, "image")
    try:
        pixels = _decode_jpeg(stream, name, max_pixels)
        return np.array(_decode(stream, name, max_pixels)) if pixels is None else pixels
    finally:
        if isinstance(source, str | Path | bytes):
            stream.close()


def _decode_jpeg(stream: BinaryIO, name: str, max_pixels: int) -> np.ndarray | None:
    """Return the pixels of an upright colour JPEG; None for anything else, damaged ones included."""
    is_jpeg = stream.read(3) == b"\xff\xd8\xff"
    stream.seek(0)
    if not is_jpeg:
        return None
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(stream, formats=("JPEG",))
            _check_size(image.size, max_pixels, name)
            if image.mode != "RGB" or image.getexif().get(_ORIENTATION, 1) != 1:
                return None
            stream.seek(0)
            content = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8)
        pixels = decode_jpeg(content, ImageReadMode.RGB)
        assert isinstance(pixels, torch.Tensor)  # a list only for several files
        return pixels.permute(1, 2, 0).numpy()
    except UserError:
        raise
    except (*_DAMAGED, Image.DecompressionBombError):
        return None
    finally:
        stream.seek(0)


def image_size(source: MediaSource) -> tuple[int, int]:
    """Return width and height of the upright picture in pixels, from its header.

    Raises:
        UserError: The file is missing or no picture.
    """
    stream, name = open_media(source, "image")
    try:
        with Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in range(5, 9)
            if isinstance(image, TiffImageFile) and _ORIENTATION in image.tag_v2:
                turned = False  # of a TIFF, Pillow gives the upright size before it is decoded
    except _DAMAGED as error:
        raise UserError(f"not an image, or damaged: {error}", where=name) from None
    finally:
        stream.close()
    return (height, width) if turned else (width, height)


def _decode(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked below, and a damaged tag is no news to the user
            image = Image.open(stream, formats=FORMATS)
            _check_size(image.size, max_pixels, name)
            image.load()
            return _to_upright_rgb(image)
    except Image.DecompressionBombError:
        raise UserError(f"the image has more than the {max_pixels:,} pixels allowed", where=name) from None
    except Image.UnidentifiedImageError:
        kind = "it holds text" if looks_like_text(stream) else "its content is no known picture format"
        fix = "give a PNG, JPEG, GIF, WebP, AVIF, BMP or TIFF file"
        raise UserError(f"not an image: {kind}", where=name, fix=fix) from None
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(f"the image is damaged or cut off: {error}", where=name) from None


def _check_size(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        what = f"{width} x {height} = {width * height:,} pixels are more than the {max_pixels:,} allowed"
        raise UserError(what, where=name, fix="make it smaller first")
    if width * height == 0:
        raise UserError("the image has no pixels", where=name)


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    image = _to_8_bit(_upright(image), _grey_bits(image))
    has_alpha = image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info
    if not has_alpha:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return image
    except _DAMAGED:
        return image  # an unreadable EXIF block says nothing about the pixels


def _grey_bits(image: Image.Image) -> int:
    """Return how many bits the white of an integer grey picture has.

    Pillow opens grey of more than 8 bits, and no other, as `I;16` or `I`, on the scale of 16 bits whatever the file has
    (PNG, PGM, JPEG 2000); only the 12 bits of a TIFF stay as they are. Integers of 32 bits, whose white no format
    names, count as 16 bits too: that is what Pillow writes from them.
    """
    is_12_bit = isinstance(image, TiffImageFile) and image.tag_v2.get(BITSPERSAMPLE) == (12,)
    return 12 if is_12_bit else 16


def _to_8_bit(image: Image.Image, bits: int) -> Image.Image:
    """Scale deep grey to 8 bits; Pillow's own conversion clips it, which turns nearly all of it white.

    The scale of integers is that of the mode and never of the values, or a dark picture would come out bright. Floats
    have no scale of their own: 0 to 1 where no value is above 1, else 0 to 255.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values)
        scale = 255.0 if values.max() <= 1.0 else 1.0
    else:
        scale = 255.0 / (2**bits - 1)
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def _image_of_array(array: np.ndarray) -> Image.Image:
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in {3, 4})
    if array.dtype != np.uint8 or not is_picture:
        raise UserError(
            f"expected a uint8 array (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}",
            fix="multiply values between 0 and 1 by 255 and cast",
        )
    if array.size == 0:
        raise UserError("the image has no pixels")
    return Image.fromarray(array)
