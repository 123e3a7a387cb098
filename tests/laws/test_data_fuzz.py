"""Damaged media and tables through the real loaders: nothing crashes or hangs, and the right row is named.

The default run is a sample; `-m slow` runs 1,000 pictures, 300 sounds and 50 videos.
"""

import base64
import io
import json
import resource
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from unival.data.inspect import inspect_rows
from unival.data.manifest import ManifestRows
from unival.data.source import Source
from unival.data.table import TableRows

SECONDS = 10.0
GOOD_EVERY = 7  # every seventh row is left whole, and must be found whole
MAX_GROWTH_KB = 300_000


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    pixels[10:30, 10:50] = (200, 30, 30)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def sound(kind: str) -> bytes:
    stream = io.BytesIO()
    wave = 0.4 * np.sin(np.arange(12000) * 0.05)
    soundfile.write(stream, wave, 16000, format=kind, subtype="VORBIS" if kind == "OGG" else None)
    return stream.getvalue()


def video(kind: str, codec: str) -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track = container.add_stream(codec, rate=10)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 9, np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3")
VIDEOS = (("mp4", "mpeg4"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("matroska", "mpeg4"))


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of the ways that disks, networks and people do."""
    data = bytearray(content)
    place = int(rng.integers(len(data)))
    # Most of what a reader trusts stands in the first bytes.
    if rng.random() < 0.5:
        place = int(rng.integers(min(len(data), 200)))
    match int(rng.integers(7)):
        case 0:
            for spot in rng.integers(0, len(data), int(rng.integers(1, 40))):
                data[spot] ^= 1 << int(rng.integers(8))
        case 1:
            del data[max(place, 1) :]
        case 2:
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        case 3:
            data[place:place] = rng.bytes(int(rng.integers(1, 500)))
        case 4:
            del data[place : place + int(rng.integers(1, 300))]
        case 5:
            data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
        case _:
            data = bytearray(rng.bytes(len(data))) if rng.random() < 0.2 else data + data[place:]
    return bytes(data)


def files(originals: list[bytes], number: int) -> list[bytes]:
    rng = np.random.default_rng(number)
    return [
        originals[i % len(originals)] if i % GOOD_EVERY == 0 else mutated(originals[i % len(originals)], rng)
        for i in range(number)
    ]


def table(contents: list[bytes], folder: Path) -> Source:
    lines = [f"{i}\t{base64.urlsafe_b64encode(content).decode()}" for i, content in enumerate(contents)]
    (folder / "rows.tsv").write_text("\n".join(lines), encoding="ascii")
    return TableRows(folder / "rows.tsv", ["uid", "image"])


def ranges(column: str) -> Callable[[list[bytes], Path], Source]:
    def manifest(contents: list[bytes], folder: Path) -> Source:
        rows, offset = [], 0
        for i, content in enumerate(contents):
            rows.append({"uid": str(i), column: {"file": "all.bin", "offset": offset, "bytes": len(content)}})
            offset += len(content)
        (folder / "all.bin").write_bytes(b"".join(contents))
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return ManifestRows(folder / "rows.jsonl")

    return manifest


CASES = {
    "pictures": (lambda: [picture(kind) for kind in PICTURES], table, 1000),
    "sounds": (lambda: [sound(kind) for kind in SOUNDS], ranges("audio"), 300),
    "videos": (lambda: [video(*kind) for kind in VIDEOS], ranges("video"), 50),
}


def check(name: str, share: float, folder: Path) -> None:
    originals, write, number = CASES[name]
    contents = files(originals(), int(number * share))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    source = write(contents, folder)
    found, looks = inspect_rows(source, workers=1, seconds=SECONDS, num_tiles=0)
    assert found.rows == len(contents)
    assert {look.where for look in looks} == {problem["where"] for problem in found.problems}
    harmed = [problem for problem in found.problems if "its decoder" in problem["what"]]
    assert not harmed, "a decoder crashed or hung"
    bad = {int(problem["where"].rpartition(":")[2]) - 1 for problem in found.problems}
    assert not {i for i in bad if i % GOOD_EVERY == 0}, "a good row was refused"
    assert all(problem["uid"] == str(row) for problem, row in zip(found.problems, sorted(bad), strict=True))
    assert len(bad) >= len(contents) // 5  # the rest survived its damage
    # A child's maximum begins with what the process that made it had.
    least = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < least + MAX_GROWTH_KB


@pytest.mark.parametrize("name", CASES)
def test_a_sample_of_damaged_media(name: str, tmp_path: Path) -> None:
    check(name, {"pictures": 0.1, "sounds": 0.1, "videos": 0.2}[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_all_damaged_media(name: str, tmp_path: Path) -> None:
    check(name, 1.0, tmp_path)
