"""Predictions in the format that each benchmark's own evaluation reads (a server, or its script).

coco, nocaps, msrvtt   [{"image_id": 391895, "caption": "a man on a bike"}]
activitynet            {"version": "VERSION 1.0", "results": {"v_uqiMw7tQ1Cc": [{"sentence", "timestamp"}]}, ...}
clotho                 CSV with the columns file_name and caption_predicted (DCASE, task 6)
vqa                    [{"question_id": 262148000, "answer": "down"}]; VQAv2, OK-VQA, MSRVTT-QA, MSVD-QA
vizwiz                 [{"image": "VizWiz_val_00000000.jpg", "answer": "soda"}]
gqa                    [{"questionId": "201307251", "prediction": "yes"}]
refcoco                [{"uniq_id": "26", "box": [x0, y0, x1, y1]}], pixels of the picture, as OFA and UnIVAL wrote it
snli_ve                [{"uniq_id": "4705552913.jpg#2r1n", "answer": "contradiction"}]
"""

import csv
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from unival.atomic import replacing, write_json
from unival.errors import UserError, did_you_mean

Row = Mapping[str, Any]
SNLI_VE_LABELS = {"yes": "entailment", "no": "contradiction", "maybe": "neutral"}


def write_submission(kind: str, rows: Iterable[Row], path: str | Path) -> int:
    """Write the file that a benchmark's evaluation reads; nothing is written if a row is wrong.

    Args:
        kind: One of `KINDS`.
        rows: Rows of the manifest, each with a `prediction`: text, for `refcoco` a box in pixels or None (found
            nothing: an empty box). The identity is `image_id`, `question_id`, `video_id` or `audio_id`, else `uid`.
        path: File to write; `clotho` is CSV, all others JSON.

    Returns:
        The number of entries.

    Raises:
        UserError: An unknown kind, no row, a row without identity or with a prediction of the wrong type, or an
            identity that occurs twice with different predictions (equal ones count once).
    """
    check_kind(kind)
    names, entry_of, write = KINDS[kind]
    entries: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        identity = _identity(row, names, index)
        entry = entry_of(identity, row)
        if entries.setdefault(str(identity), entry) != entry:
            what = f"{names[0]} {identity} has two different predictions"
            raise UserError(what, where=f"row {index}", fix="predict each of them once")
    if not entries:
        raise UserError("no prediction to submit", where=str(path))
    write(Path(path), list(entries.values()))
    return len(entries)


def check_kind(kind: str) -> None:
    """Refuse an unknown format.

    Raises:
        UserError: Lists the known ones.
    """
    if kind not in KINDS:
        raise UserError(f"unknown submission format {kind!r}", fix=did_you_mean(kind, KINDS))


def check_row(kind: str, row: Row, where: str) -> None:
    """Refuse a row that cannot become an entry, whatever is predicted for it.

    Args:
        kind: One of `KINDS`.
        row: Of the data set.
        where: It stands.

    Raises:
        UserError: It lacks what the format needs.
    """
    names, entry_of, _ = KINDS[kind]
    try:
        entry_of(_identity(row, names, 0), {**row, "prediction": None if entry_of is _box else "yes"})
    except UserError as error:
        raise UserError(f"submission {kind}: {error.what}", where, error.fix) from None


def _identity(row: Row, names: tuple[str, ...], index: int) -> int | str:
    value = next((row[name] for name in (*names, "uid") if row.get(name) is not None), None)
    if value is None or value == "":
        raise UserError("a row has no identity", where=f"row {index}", fix=f"give it `{names[0]}`")
    is_number = isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value)) == value
    return int(value) if is_number else value  # "007" is a name


def _text(row: Row, identity: object) -> str:
    text = row.get("prediction")
    if not isinstance(text, str):
        fix = "give every row a `prediction`; an empty text is allowed"
        raise UserError(f"the prediction must be text, got {text!r}", where=str(identity), fix=fix)
    return text


def _caption(identity: int | str, row: Row) -> dict[str, Any]:
    return {"image_id": identity, "caption": _text(row, identity)}


def _sentence(identity: int | str, row: Row) -> dict[str, Any]:
    span = row.get("timestamp")
    if not (isinstance(span, list | tuple) and len(span) == 2):
        raise UserError(
            "the row has no timestamp", where=str(identity), fix='give "timestamp": [start, end] in seconds'
        )
    return {"video": str(row.get("video_id", identity)), "sentence": _text(row, identity), "timestamp": list(span)}


def _answer(identity: int | str, row: Row) -> dict[str, Any]:
    return {"question_id": identity, "answer": _text(row, identity)}


def _vizwiz(identity: int | str, row: Row) -> dict[str, Any]:
    return {"image": PurePosixPath(str(identity)).name, "answer": _text(row, identity)}


def _gqa(identity: int | str, row: Row) -> dict[str, Any]:
    return {"questionId": str(row.get("question_id", identity)), "prediction": _text(row, identity)}


def _clotho(identity: int | str, row: Row) -> dict[str, Any]:
    return {"file_name": PurePosixPath(str(identity)).name, "caption_predicted": _text(row, identity)}


def _box(identity: int | str, row: Row) -> dict[str, Any]:
    box = row.get("prediction", "")
    if box is None:
        box = [0.0, 0.0, 0.0, 0.0]
    if not (
        isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(x, int | float) and isfinite(x) for x in box)
    ):
        raise UserError(f"the prediction must be a box, got {box!r}", where=str(identity), fix="[x0, y0, x1, y1]")
    return {"uniq_id": str(identity), "box": [float(x) for x in box]}


def _label(identity: int | str, row: Row) -> dict[str, Any]:
    label = _text(row, identity)
    if label not in SNLI_VE_LABELS:
        raise UserError(f"unknown label {label!r}", where=str(identity), fix=did_you_mean(label, SNLI_VE_LABELS))
    return {"uniq_id": str(identity), "answer": SNLI_VE_LABELS[label]}


def _write_list(path: Path, entries: list[dict[str, Any]]) -> None:
    write_json(path, entries)


def _write_activitynet(path: Path, entries: list[dict[str, Any]]) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        results.setdefault(entry.pop("video"), []).append(entry)
    # Proposals and features are the data set's own: the challenge asks which outside data was used.
    write_json(path, {"version": "VERSION 1.0", "results": results, "external_data": {"used": False, "details": ""}})


def _write_csv(path: Path, entries: list[dict[str, Any]]) -> None:
    with replacing(path) as file:
        writer = csv.DictWriter(file, list(entries[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)


Entry = Callable[[int | str, Row], dict[str, Any]]
Writer = Callable[[Path, list[dict[str, Any]]], None]
# Kind: (columns that hold the identity, first choice first; how a row is written; how the file is).
KINDS: dict[str, tuple[tuple[str, ...], Entry, Writer]] = {
    "coco": (("image_id",), _caption, _write_list),
    "nocaps": (("image_id",), _caption, _write_list),
    "msrvtt": (("video_id", "image_id"), _caption, _write_list),
    "activitynet": (("uid",), _sentence, _write_activitynet),
    "clotho": (("audio_id",), _clotho, _write_csv),
    "vqa": (("question_id",), _answer, _write_list),
    "vizwiz": (("image_id",), _vizwiz, _write_list),
    "gqa": (("question_id",), _gqa, _write_list),
    "refcoco": (("uid",), _box, _write_list),
    "snli_ve": (("uid",), _label, _write_list),
}
