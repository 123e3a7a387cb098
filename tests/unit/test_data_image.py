"""Pictures of every common kind come out upright, 8-bit, RGB; bad files are one clear line."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unival.data.image import image_size, load_image, load_pixels
from unival.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def halves(width: int = 8, height: int = 4) -> Image.Image:
    """A picture whose left half is red and whose right half is blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def is_close(pixel: object, color: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(np.subtract(pixel, color)).max() <= tolerance)  # type: ignore[arg-type]


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_keep_every_pixel(file_format: str) -> None:
    image = load_image(encoded(halves(), file_format))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(halves()))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_keep_the_colours(file_format: str) -> None:
    image = load_image(encoded(halves(32, 16), file_format, quality=95))
    assert is_close(image.getpixel((2, 8)), RED)
    assert is_close(image.getpixel((29, 8)), BLUE)


def test_path_text_bytes_file_and_image_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    halves().save(path)
    with path.open("rb") as file:
        images = [load_image(source) for source in (path, str(path), path.read_bytes(), file, halves())]
        assert not file.closed
    assert all(np.array_equal(image, images[0]) for image in images)


# EXIF tag 274 -> where the stored top-left pixel belongs: (x, y) as a share of the upright picture.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, "nw"), (2, "ne"), (3, "se"), (4, "sw"), (5, "nw"), (6, "ne"), (7, "se"), (8, "sw")],
)
def test_exif_orientation_is_applied(orientation: int, corner: str) -> None:
    stored = Image.new("RGB", (32, 16), BLUE)
    stored.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[274] = orientation
    image = load_image(encoded(stored, "JPEG", exif=exif, quality=95))
    assert image.size == ((32, 16) if orientation <= 4 else (16, 32))
    x = 2 if "w" in corner else image.width - 3
    y = 2 if "n" in corner else image.height - 3
    assert is_close(image.getpixel((x, y)), RED)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_size_of_the_header_is_that_of_the_upright_picture(file_format: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        content = encoded(halves(32, 16), file_format, exif=exif)
        assert image_size(content) == load_image(content).size == ((32, 16) if orientation <= 4 else (16, 32))


def test_a_broken_exif_block_is_ignored() -> None:
    data = encoded(halves(32, 16), "JPEG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert load_image(data).size == (32, 16)


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = load_image(encoded(halves(32, 16).convert("CMYK"), "JPEG", quality=95))
    assert is_close(image.getpixel((2, 8)), RED, tolerance=20)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(file_format: str) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = load_image(encoded(Image.fromarray(values), file_format))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def pgm_of_16_bits(values: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


def tiff_of_12_bits(values: list[int]) -> bytes:
    """Write one row of an even number of pixels."""
    bits = "".join(f"{value:012b}" for value in values)
    pixels = int(bits, 2).to_bytes(len(bits) // 8, "big")
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 12 * 8 + 4, 278: 1, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def test_deep_grey_has_one_scale_in_dark_and_bright_pictures() -> None:
    """A picture whose brightest value is 255 of 65,535 is black, not white."""
    values = np.array([[0, 200, 255]], np.uint16)
    dark = [
        encoded(Image.fromarray(values), "PNG"),
        encoded(Image.fromarray(values), "TIFF"),
        encoded(Image.fromarray(values.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(values), "JPEG2000"),
        pgm_of_16_bits(values),
    ]
    for content in dark:
        assert np.asarray(load_image(content))[0, :, 0].tolist() == [0, 1, 1]
    assert np.asarray(load_image(pgm_of_16_bits(values * 256)))[0, :, 0].tolist() == [0, 199, 254]
    assert np.asarray(load_image(tiff_of_12_bits([0, 255, 2048, 4095])))[0, :, 0].tolist() == [0, 16, 128, 255]


def test_float_tiff_between_0_and_1_is_scaled() -> None:
    image = load_image(encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


def test_alpha_is_blended_on_white() -> None:
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (255, 0, 0, 0))
    image.putpixel((2, 0), (0, 0, 0, 128))
    assert np.asarray(load_image(encoded(image, "PNG")))[0].tolist() == [
        list(RED),
        list(WHITE),
        [127, 127, 127],
    ]


def test_grey_with_alpha_is_blended_on_white() -> None:
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    assert np.asarray(load_image(encoded(image, "PNG")))[0].tolist() == [[0, 0, 0], list(WHITE)]


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert np.asarray(load_image(encoded(image, "PNG", transparency=1)))[0].tolist() == [
        list(RED),
        list(WHITE),
    ]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (GREEN, RED, BLUE)]
    image = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert image.getpixel((0, 0)) == GREEN


def test_arrays_are_taken_as_they_are() -> None:
    array = np.asarray(halves())
    assert np.array_equal(np.asarray(load_image(array)), array)
    assert load_image(np.zeros((4, 5), np.uint8)).size == (5, 4)


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((3, 5, 6), np.uint8), np.zeros(4, np.uint8)])
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="expected a uint8 array"):
        load_image(array)


def png_bomb(side_px: int) -> bytes:
    """A black palette PNG of any size in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + side_px // 8)
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side_px", [9_000, 20_000])
def test_a_bomb_is_refused_before_decoding(side_px: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: object) -> None:
        raise AssertionError("decoded")

    data = png_bomb(side_px) if side_px == 9_000 else png_bomb(8)[:16] + struct.pack(">II", side_px, side_px)
    if side_px != 9_000:
        rest = png_bomb(8)[24:29]
        head = data[12:] + rest
        data += rest + struct.pack(">I", zlib.crc32(head)) + png_bomb(8)[33:]
    assert len(data) < 20_000
    monkeypatch.setattr(Image.Image, "load", decode)
    with pytest.raises(UserError, match="pixels"):
        load_image(data)


def test_the_pixel_limit_is_an_argument() -> None:
    assert load_image(halves(), max_pixels=32).size == (8, 4)
    with pytest.raises(UserError, match=r"8 x 4 = 32 pixels are more than the 31 allowed"):
        load_image(halves(), max_pixels=31)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    halves().save(tmp_path / "picture.png")
    with pytest.raises(
        UserError, match=r"the image file does not exist \[.*pictrue.png\] \(did you mean 'picture.png'"
    ):
        load_image(tmp_path / "pictrue.png")
    with pytest.raises(UserError, match="there is no folder"):
        load_image(tmp_path / "no" / "picture.png")


def test_text_named_png_says_so(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("just some notes, ünïcode too\n" * 100, encoding="utf-8")
    with pytest.raises(UserError, match=r"not an image: it holds text \[.*notes.png\] \(give a PNG"):
        load_image(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\0\x01\x02" * 50, "no known picture format"),
        (encoded(halves(64, 64), "PNG")[:60], "damaged or cut off"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "damaged or cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it holds text"),
    ],
)
def test_bad_content_is_one_clear_line(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as info:
        load_image(data)
    assert "\n" not in str(info.value)


def test_a_folder_and_an_odd_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one image file, got a folder"):
        load_image(tmp_path)
    with pytest.raises(UserError, match="cannot open the image file"):
        load_image("a\0b.png")
    with pytest.raises(UserError, match="does not exist"):
        load_image("http://127.0.0.1/a.png")


def test_damaged_files_raise_nothing_else() -> None:
    rng = random.Random(0)
    noise = Image.effect_noise((24, 16), 80).convert("RGB")
    seeds = [encoded(noise, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "AVIF")]
    num_refused = 0
    for trial in range(300):
        data = bytearray(seeds[trial % len(seeds)])
        for _ in range(rng.choice([1, 5, 20])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            assert load_image(bytes(data)).mode == "RGB"
        except UserError:
            num_refused += 1
    assert 0 < num_refused < 300


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"quality": 30, "progressive": True}, {"subsampling": 0}, {"exif": "turned"}], ids=str
)
def test_the_fast_way_gives_the_same_pixels(mode: str, options: dict[str, object]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    options = {name: turned.tobytes() if value == "turned" else value for name, value in options.items()}
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (61, 97, 3)).astype(np.uint8)).convert(mode).save(stream, "JPEG", **options)
    content = stream.getvalue()
    pixels = load_pixels(content)
    np.testing.assert_array_equal(pixels, np.asarray(load_image(content)))
    assert pixels.flags.writeable
    for place in rng.integers(2, len(content), 12):  # a changed byte: the same pixels, or the same message
        damaged = content[:place] + b"\x55" + content[place + 1 :]
        outcomes = []
        for load in (load_image, load_pixels):
            try:
                outcomes.append(np.asarray(load(damaged)).tobytes())
            except UserError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1]


def test_the_fast_way_refuses_what_is_too_large() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (100, 50)).save(stream, "JPEG")
    with pytest.raises(UserError, match=r"100 x 50 = 5,000 pixels are more than the 4,999"):
        load_pixels(stream.getvalue(), max_pixels=4999)
    assert load_pixels(np.zeros((2, 3), np.uint8)).shape == (2, 3, 3)
