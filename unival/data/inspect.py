"""Look at every row of a data set: can its medium be decoded, what is in it, and a picture of some of them."""

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from unival.atomic import replacing
from unival.data.audio import load_audio
from unival.data.bad_rows import decoding
from unival.data.fields import media_of
from unival.data.image import load_image
from unival.data.source import Source, row_name
from unival.data.table import TableRows
from unival.data.video import load_video
from unival.data.workers import Workers
from unival.errors import UserError

TILE_PX, TEXT_PX, COLUMNS = 160, 52, 8
SOUND_HZ = 8_000
TEXTS = ("captions", "caption", "question", "text", "answers", "label")
Probe = Callable[[Mapping[str, Any]], bool]


@dataclass
class Look:
    """What one row looks like.

    Attributes:
        where: File and line.
        uid: Its identity.
        medium: Column of its medium; `text` without.
        problem: Why it cannot be used; empty if it can.
        fix: What to do about it, if that is known.
        size: Width and height of pictures and frames.
        seconds: Of a sound.
        text: What the row says, in a line.
        is_labelled: Whether it has what a task is learned and scored with.
        media_id: What rows about the same medium share, where the source says so.
        tile: A small picture of the medium, PNG.
    """

    where: str
    uid: str = ""
    medium: str = "text"
    problem: str = ""
    fix: str = ""
    size: tuple[int, int] | None = None
    seconds: float | None = None
    text: str = ""
    is_labelled: bool = True
    media_id: str = ""
    tile: bytes = b""


@dataclass
class Inspection:
    """What a whole data set looks like; rows without a label can be predicted, neither learned nor scored."""

    rows: int = 0
    good: int = 0
    unlabelled: int = 0
    repeated: int = 0
    media: dict[str, int] = field(default_factory=dict)
    width: list[int] = field(default_factory=list)
    height: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return it for JSON; of sizes and lengths the smallest, the median and the largest."""
        spans = {name: _span(getattr(self, name)) for name in ("width", "height", "seconds") if getattr(self, name)}
        return {**{name: value for name, value in asdict(self).items() if name not in spans and value != []}, **spans}


def inspect_rows(
    source: Source,
    workers: int = 1,
    seconds: float = 30.0,
    num_tiles: int = 40,
    probe: Probe | None = None,
) -> tuple[Inspection, list[Look]]:
    """Decode every row, in processes that are replaced when a decoder hangs or crashes.

    Args:
        source: The rows.
        workers: Processes; 0 decodes here, where nothing can be stopped.
        seconds: How long one row may take.
        num_tiles: How many rows, evenly spread, get a small picture.
        probe: Called with every row; says whether it has a label. What it raises is a problem of the row (a task that
            misses a column).

    Returns:
        The summary, and the looks that have a picture or a problem.
    """
    num_rows = len(source)
    pictured = {int(index) for index in np.linspace(0, num_rows - 1, min(num_tiles, num_rows))}
    pool = Workers(lambda index, struck: look_at(source, index, struck, index in pictured, probe), workers, seconds, 16)
    lost: dict[str, str] = {}
    pool.on_loss = lost.__setitem__
    found, kept, uids = Inspection(), [], {}
    media: Counter[str] = Counter()
    for index, look in enumerate(pool.results(range(num_rows))):
        look.problem = lost.get(look.where, look.problem)
        own = index, look.where, look.media_id
        first, where, media_id = uids.setdefault(look.uid, own) if look.uid else own
        if not look.problem and first != index:
            # In tables a question has a row for each of its answers.
            if isinstance(source, TableRows) and look.media_id and look.media_id == media_id:
                found.repeated += 1
            else:
                look.problem = f"the uid {look.uid!r} is also that of row {first}, {where}"
        found.rows += 1
        found.good += not look.problem
        found.unlabelled += not look.problem and not look.is_labelled
        media[look.medium] += 1
        if look.size:
            found.width.append(look.size[0])
            found.height.append(look.size[1])
        if look.seconds is not None:
            found.seconds.append(look.seconds)
        if look.problem:
            fix = {"fix": look.fix} if look.fix else {}
            found.problems.append({"where": look.where, "uid": look.uid, "what": look.problem, **fix})
        if look.problem or index in pictured:
            kept.append(look)
    found.media = dict(media)
    return found, kept


def look_at(source: Source, index: int, struck: frozenset[str], is_pictured: bool, probe: Probe | None) -> Look:
    """Read and decode one row; a problem is part of the result."""
    look = Look(row_name(source, index))
    if look.where in struck:
        return look
    try:
        row = source[index]
        look.uid, look.text, look.media_id = str(row.get("uid", "")), _text_of(row), str(row.get("media_id", ""))
        found = media_of(row)
        look.medium = found[0] if found else "text"
        if probe is not None:
            look.is_labelled = probe(row)
        if found is not None:
            with decoding(look.where):
                pixels = _decode(*found, look)
            _check_box(row, look)
            if is_pictured:
                look.tile = _png(pixels, row.get("box") if look.size else None)
    except UserError as error:
        look.problem = error.what + (f" ({error.where})" if error.where and error.where != look.where else "")
        look.fix = error.fix or ""
    return look


def write_sheet(looks: list[Look], path: str | Path, max_tiles: int = 200) -> None:
    """Draw the rows side by side, each with its text; those with a problem are red. PNG or JPEG by the file's name.

    Raises:
        UserError: The file cannot be written.
    """
    tiles = looks[:max_tiles]
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE_PX, max(rows, 1) * (TILE_PX + TEXT_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, look in enumerate(tiles):
        left, top = number % COLUMNS * TILE_PX, number // COLUMNS * (TILE_PX + TEXT_PX)
        if look.tile:
            tile = Image.open(io.BytesIO(look.tile))
            sheet.paste(tile, (left + (TILE_PX - tile.width) // 2, top + (TILE_PX - tile.height) // 2))
        lines = textwrap.wrap(f"{look.uid}: {look.problem or look.text}", 25)[:4]
        text = "\n".join(line.encode("latin-1", "replace").decode("latin-1") for line in lines)  # the font has no more
        if look.problem:
            draw.rectangle((left + 1, top + 1, left + TILE_PX - 2, top + TILE_PX + TEXT_PX - 2), outline="red", width=2)
        draw.multiline_text((left + 4, top + TILE_PX), text, fill="red" if look.problem else "black", spacing=1)
    name = Path(path)
    if name.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise UserError(f"the contact sheet must be a .png or .jpg file: {path}", fix="such as --sheet sheet.png")
    try:
        with replacing(name, "wb") as file:
            sheet.save(file, "PNG" if name.suffix.lower() == ".png" else "JPEG")
    except OSError as error:
        what = f"cannot write the contact sheet: {error.strerror}"
        raise UserError(what, where=str(path), fix="choose another --sheet") from None


def _decode(column: str, medium: Any, look: Look) -> np.ndarray:
    """Return a picture of a medium, uint8 (H, W, 3), and note its size or length."""
    if column == "audio":
        samples = load_audio(medium, SOUND_HZ)
        look.seconds = round(len(samples) / SOUND_HZ, 3)
        return _wave(samples)
    pixels = load_video(medium, 3)[1] if column == "video" else np.asarray(load_image(medium))
    look.size = pixels.shape[1], pixels.shape[0]
    return pixels


def _check_box(row: Mapping[str, Any], look: Look) -> None:
    if look.size is None or not ("box" in row or look.medium == "image"):
        return
    size = row.get("width", look.size[0]), row.get("height", look.size[1])
    if tuple(size) != look.size:
        raise UserError(f"width and height say {size[0]} x {size[1]}, the picture has {look.size[0]} x {look.size[1]}")
    if "box" not in row:
        return
    x0, y0, x1, y1 = row["box"]
    if max(row["box"]) <= 1:
        raise UserError(f"the box {row['box']} is no larger than a pixel", fix="boxes are in pixels: x0, y0, x1, y1")
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise UserError(f"the box {row['box']} does not lie in the picture of {size[0]} x {size[1]}")


def _wave(samples: np.ndarray) -> np.ndarray:
    """Draw a waveform, uint8 (TILE_PX / 2, TILE_PX, 3)."""
    height = TILE_PX // 2
    pixels = np.full((height, TILE_PX, 3), 245, np.uint8)
    for column, part in enumerate(np.array_split(samples, TILE_PX)):
        if len(part):
            ends = ((1 - np.clip([part.max(), part.min()], -1, 1)) / 2 * (height - 1)).astype(int)
            pixels[ends[0] : ends[1] + 1, column] = (40, 90, 160)
    return pixels


def _png(pixels: np.ndarray, box: Sequence[float] | None) -> bytes:
    image = Image.fromarray(pixels)
    width, height = image.size
    image.thumbnail((TILE_PX - 6, TILE_PX - 6))
    if box is not None:
        scale = (image.width / width, image.height / height) * 2
        corners = [round(value * by) for value, by in zip(box, scale, strict=True)]
        ImageDraw.Draw(image).rectangle(corners, outline="red", width=2)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _text_of(row: Mapping[str, Any]) -> str:
    values = [row[name] for name in TEXTS if row.get(name)]
    return "; ".join(str(value[0] if isinstance(value, list) else value) for value in values)


def _span(values: list[Any]) -> list[Any]:
    ordered = sorted(values)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
