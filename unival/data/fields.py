"""The fields of a row: what type each has, as `docs/data.md` says, and how the original wrote it as text."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from unival.data.media import MediaRange
from unival.errors import UserError

MEDIA_COLUMNS = ("image", "video", "audio")
LABELS = {"entailment": "yes", "contradiction": "no", "neutral": "maybe", "yes": "yes", "no": "no", "maybe": "maybe"}
ANSWER_MARK = "|!+"  # between confidence and answer in the original's files
LIST_MARK = "&&"


def check_row(row: Mapping[str, Any], where: str) -> None:
    """Check the fields that have a fixed type; media, which `resolve_media` checks, and other fields are free.

    No text may hold half of a surrogate pair, which JSON can spell (by an escape) and nothing can write or tokenize.

    Raises:
        UserError: Names the field, what it should be, and `where`.
    """
    for name, value in row.items():
        if not _is_unicode(name) or not _is_unicode(value):
            raise UserError(f"{name} must be valid Unicode, got {_shown(value)}", where=where)
    for name, (is_right, meaning) in _TYPES.items():
        if name in row and not is_right(row[name]):
            raise UserError(f"{name} must be {meaning}, got {_shown(row[name])}", where=where)
    confidences, answers = row.get("confidences"), row.get("answers", [])
    if confidences is not None and len(confidences) != len(answers):
        what = f"{len(answers)} answers have {len(confidences)} confidences"
        raise UserError(what, where=where, fix="give one for each answer")


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinities, which Python's JSON reads: the `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is no JSON number")


def media_of(row: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Return the column and the value of a row's medium; None for text only."""
    return next(((column, row[column]) for column in MEDIA_COLUMNS if row.get(column) is not None), None)


def resolve_media(value: Any, root: Path, is_free: bool, where: str) -> str | MediaRange:
    """Turn the media value of a manifest row into a path or a range inside `root`.

    Args:
        value: A path, or {"file", "offset", "bytes", "encoding"}.
        root: Folder that paths are relative to.
        is_free: `root` was chosen on purpose; otherwise a path that leaves it is refused.
        where: For messages.

    Raises:
        UserError: A path is empty or leaves the folder, or a range is malformed.
    """
    if isinstance(value, str):
        return _inside(value, root, is_free, where)
    if not isinstance(value, dict):
        raise UserError(f"a medium must be a path or a range of a file, got {_shown(value)}", where=where)
    known = {"file", "offset", "bytes", "encoding"}
    offset, size = value.get("offset"), value.get("bytes")
    is_known = isinstance(value.get("file"), str)
    if (
        not is_known
        or not _is_count(offset)
        or not _is_count(size)
        or set(value) - known
        or value.get("encoding") not in (None, "base64")
    ):
        fix = 'write {"file": path, "offset": 0, "bytes": 1, "encoding": "base64"}, the last one only for base64'
        raise UserError(f"not a range of a file: {_shown(value)}", where=where, fix=fix)
    path = _inside(value["file"], root, is_free, where)
    return MediaRange(path, offset, size, "encoding" in value, f"{where} ({path} at byte {offset:,})")


def parse_text(name: str, text: str, where: str) -> Any:
    """Turn a cell of a table into the value of a field, by the rules of the original's files.

    `captions` and `objects` are lists with `&&`; `answers` too, of `confidence|!+answer` or of plain answers, and
    come back as a mapping with both lists; `box` is four numbers with commas; `codes` are numbers with spaces; `label`
    also has the names of SNLI-VE.

    Raises:
        UserError: The cell does not read so.
    """
    parse = _PARSERS.get(name)
    try:
        return text if parse is None else parse(text)
    except (ValueError, KeyError):
        meaning = _TYPES.get(name, (None, "a number"))[1]
        raise UserError(f"{name} must be {meaning}, got {_shown(text)}", where=where) from None


def parse_answers(text: str) -> dict[str, list[Any]]:
    """Return `answers`, best first, and `confidences` where the text has them."""
    parts = [part.split(ANSWER_MARK, 1) for part in text.split(LIST_MARK) if part]
    if not all(len(part) == 2 for part in parts):
        return {"answers": [part[-1] for part in parts]}
    pairs = sorted(((float(confidence), answer) for confidence, answer in parts), key=lambda pair: -pair[0])
    return {"answers": [answer for _, answer in pairs], "confidences": [confidence for confidence, _ in pairs]}


def given_captions(record: Mapping[str, Any]) -> list[str]:
    """Return the captions of a record as they are, without empty ones."""
    given = record["captions"] if "captions" in record else [record["caption"]] if "caption" in record else []
    return [caption for caption in given if caption.strip()]


def _inside(text: str, root: Path, is_free: bool, where: str) -> str:
    path = Path(text)
    if not text or "\0" in text:
        raise UserError(f"not a path: {_shown(text)}", where=where)
    if "://" in text:
        fix = "fetch it first; nothing is downloaded"
        raise UserError(f"an address, not a file: {_shown(text)}", where=where, fix=fix)
    if not is_free and (path.is_absolute() or ".." in path.parts):
        fix = "set `media_root` in the source to the folder that holds the media (`/` allows any)"
        raise UserError(f"the path leaves the folder of its list: {_shown(text)}", where=where, fix=fix)
    return str(root / path)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_unicode(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode())
        except UnicodeEncodeError:
            return False
    if isinstance(value, dict):
        return all(_is_unicode(part) for item in value.items() for part in item)
    return not isinstance(value, list) or all(_is_unicode(part) for part in value if not isinstance(part, int))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


_TEXT = (lambda value: isinstance(value, str), "text")
_TEXTS = (_is_texts, "a list of texts")
_NAME = (_is_name, "text or a number")
_SIZE = (lambda value: _is_number(value) and value > 0, "a positive number")
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("uid", "media_id", "image_id", "video_id", "audio_id", "question_id"), _NAME),
    **dict.fromkeys(("caption", "question", "text", "premise", "dataset", "question_type", "answer_type"), _TEXT),
    **dict.fromkeys(("captions", "answers", "objects"), _TEXTS),
    **dict.fromkeys(("width", "height"), _SIZE),
    "confidences": (lambda value: isinstance(value, list) and all(map(_is_number, value)), "a list of numbers"),
    "box": (_is_box, "four numbers x0, y0, x1, y1"),
    "codes": (lambda value: isinstance(value, list) and all(map(_is_count, value)), "a list of integers from 0"),
    "label": (lambda value: value in ("yes", "no", "maybe"), "yes, no or maybe"),
}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "captions": lambda text: text.split(LIST_MARK),
    "objects": lambda text: [part for part in text.split(LIST_MARK) if part],
    "answers": parse_answers,
    "box": lambda text: [float(part) for part in text.split(",")],
    "codes": lambda text: [int(part) for part in text.split()],
    "label": LABELS.__getitem__,
    "width": float,
    "height": float,
}
