"""What the scripts of this folder share: official annotation files in, manifests (`docs/data.md`) out.

A script is a function `build(root, ...)` that returns the rows of each manifest, lazily, and one call of `main`. A
manifest is named `NAME/SPLIT` and written to `OUT/NAME/SPLIT.jsonl`, where the configurations look for it
(`$data/NAME/SPLIT.jsonl`); OUT is the folder above the data set's unless `--out` says otherwise. Media stay where they
are: their folders are linked into `OUT/NAME`, so that data sets on the same pictures (COCO) share them.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from unival.atomic import replacing
from unival.data.fields import check_row, media_of
from unival.errors import UserError, did_you_mean, run_cli
from unival.pickles.machine import Machine

Row = dict[str, Any]
Manifests = Mapping[str, Iterable[Row]]
Missing = Literal["fail", "skip", "ignore"]
MAX_CELL_CHARS = 10_000_000
MAX_PICKLE_OPERATIONS = 200_000_000  # RefCOCO needs 6 million, WebVidQA about 40


def read_json(path: Path) -> Any:
    """Read a JSON file whose objects name the file when a field is missing."""
    return _parse(_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[Any]:
    """Read one JSON value per line, empty lines left out."""
    with _open(path) as file, _as_text(path):
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse(line, f"{path}:{number}")


def read_lines(path: Path) -> Iterator[str]:
    """Read the lines of a text file without their line ends."""
    with _open(path) as file, _as_text(path):
        for line in file:
            yield line.rstrip("\r\n")


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read a CSV file with a header that has at least these columns."""
    csv.field_size_limit(MAX_CELL_CHARS)
    with _open(path, newline="") as file, _as_text(path):
        reader = csv.DictReader(file)
        absent = [column for column in columns if column not in (reader.fieldnames or ())]
        if absent:
            what = f"no column {', '.join(absent)}"
            raise UserError(what, where=str(path), fix=f"it has {', '.join(reader.fieldnames or ['nothing'])}")
        for row in reader:
            if None in row or None in row.values():
                raise UserError("a row has another number of cells than the header", where=f"{path}:{reader.line_num}")
            yield row


def read_pickle(path: Path) -> Any:
    """Read a pickle as plain data; nothing in it is run (`unival.pickles`)."""
    if not path.is_file():
        raise _no_file(path)
    with path.open("rb") as file:
        return Machine(str(path), max_operations=MAX_PICKLE_OPERATIONS).load(file)


def present(root: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """Return those of the named files that exist under `root`, by the same keys.

    Raises:
        UserError: None of them does.
    """
    found = {name: root / file for name, file in files.items() if (root / file).exists()}
    if not found:
        raise UserError(f"none of the official files is in {root}", fix=f"expected {', '.join(files.values())}")
    return found


def per_caption(rows: Iterable[Row]) -> Iterator[Row]:
    """Turn a row with several captions into one row for each, for training by cross-entropy."""
    for row in rows:
        for number, caption in enumerate(row["captions"]):
            yield {**row, "uid": f"{row['uid']}-{number}", "captions": [caption]}


def one_line(text: str) -> str:
    """Collapse white space: some official captions hold line ends."""
    return " ".join(text.split())


def write_manifests(
    manifests: Manifests, root: Path, out: Path, missing: Missing = "fail", only: Sequence[str] = ()
) -> list[Row]:
    """Write each manifest whole or not at all.

    Args:
        manifests: Rows by the name of the manifest, `NAME/SPLIT`.
        root: Folder that media paths are relative to.
        out: Folder to write to.
        missing: What to do about rows whose medium is no file: `fail`, `skip` the row, or `ignore` (not looked at).
        only: Names of the manifests to write, by default all.

    Returns:
        For each manifest its name, rows, media, rows skipped, and the SHA-256 of the file.

    Raises:
        UserError: A row that is not in the format, a repeated uid, missing media, or no row at all.
    """
    unknown = next((name for name in only if name not in manifests), None)
    if unknown is not None:
        raise UserError(f"no manifest {unknown!r}", where="--only", fix=did_you_mean(unknown, manifests))
    names = list(only) or list(manifests)
    return [_write(name, manifests[name], root, out / f"{name}.jsonl", missing) for name in names]


def main(
    doc: str | None,
    build: Callable[..., Manifests],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Run a script: parse the command line, build, write, and say what was written.

    Args:
        doc: The script's docstring, shown by `--help`.
        build: Called with the folder of the data set and the options by name.
        options: Arguments of `add_argument` by flag.
        argv: For tests.
    """

    def run(args: Sequence[str]) -> None:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("root", type=Path, help="folder of the data set, see above")
        parser.add_argument("--out", type=Path, help="folder of all data sets (default: the one above)")
        parser.add_argument("--only", nargs="+", default=[], help="write only these manifests")
        parser.add_argument("--missing", choices=["fail", "skip", "ignore"], default="fail", help="media not there")
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        for flag, settings in (options or {}).items():
            parser.add_argument(flag, **settings)
        given = vars(parser.parse_args(args))
        root, out, only, missing, as_json = (given.pop(name) for name in ("root", "out", "only", "missing", "json"))
        if not root.is_dir():
            raise UserError(f"no such folder: {root}", fix="see --help for the expected tree")
        above = Path(os.path.normpath(root.absolute())).parent  # of the name as given: a link may point anywhere
        try:
            written = write_manifests(build(root, **given), root, out or above, missing, only)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = f"an annotation file is not what is expected: {type(error).__name__}: {error}"
            fix = "are these the official files of this data set? --debug shows where"
            raise UserError(what, where=str(root), fix=fix) from error
        if as_json:
            print(json.dumps(written))
            return
        for entry in written:
            skipped = f", {entry['skipped']} skipped" if entry["skipped"] else ""
            print(f"{entry['manifest']}: {entry['rows']} rows, {entry['media']} media{skipped}")

    run_cli(lambda args: run(args), sys.argv[1:] if argv is None else argv)


def _write(name: str, rows: Iterable[Row], root: Path, path: Path, missing: Missing) -> Row:
    media: dict[str, bool] = {}
    tops: set[str] = set()
    uids: set[str] = set()
    absent = 0
    digest = hashlib.sha256()
    with replacing(path, "wb") as file:
        for row in tqdm(rows, name, unit=" rows", disable=None):
            where = f"{name}: uid {row.get('uid')}"
            check_row(row, where)
            if str(row["uid"]) in uids:
                raise UserError("two rows have the same uid", where=where, fix="is the official file unchanged?")
            uids.add(str(row["uid"]))
            medium = media_of(row)
            if medium is not None and missing != "ignore":
                if medium[1] not in media:
                    media[medium[1]] = (root / medium[1]).is_file()
                if not media[medium[1]]:
                    absent += 1
                    continue
            if medium is not None:
                tops.add(Path(medium[1]).parts[0])
            line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
        if absent and missing == "fail":
            lost = [medium for medium, exists in media.items() if not exists]
            what = f"{len(lost)} of {len(media)} media are no file, the first is {root / lost[0]}"
            raise UserError(what, where=name, fix="complete the folder, or --missing skip to leave their rows out")
        if len(uids) == absent:
            raise UserError("not a single row", where=name, fix="is this the official file, and are the media there?")
    _link_media(tops, root, path.parent)
    num_media = sum(media.values()) if missing != "ignore" else len(uids)
    entry = {"manifest": str(path), "rows": len(uids) - absent, "media": num_media, "skipped": absent}
    return entry | {"sha256": digest.hexdigest()}


def _link_media(tops: set[str], root: Path, folder: Path) -> None:
    """Link the media's folders into the manifest's, relatively, unless they are there."""
    for top in sorted(tops):
        link, target = folder / top, root / top
        if not target.exists() or (link.exists() and link.samefile(target)):
            continue
        if link.exists() or link.is_symlink():
            what = f"{link} is something else than the media in {target}"
            raise UserError(what, fix="remove it, or choose another --out")
        link.symlink_to(os.path.relpath(target.resolve(), folder.resolve()), target_is_directory=target.is_dir())


def _parse(text: str, where: str) -> Any:
    def missing(_: dict[str, Any], key: str) -> Any:
        raise UserError(f"no field {key!r}", where=where, fix="is this the official file of this data set?")

    entry = type("Entry", (dict,), {"__slots__": (), "__missing__": missing})
    try:
        return json.loads(text, object_hook=entry)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg}", where=f"{where}:{error.lineno}:{error.colno}") from None


def _open(path: Path, newline: str | None = "\n") -> Any:
    try:
        return path.open(encoding="utf-8-sig", newline=newline)
    except (FileNotFoundError, IsADirectoryError):
        raise _no_file(path) from None


def _text(path: Path) -> str:
    with _open(path) as file, _as_text(path):
        return file.read()


@contextmanager
def _as_text(path: Path) -> Iterator[None]:
    """Explain what is no text, or no CSV."""
    try:
        yield
    except UnicodeDecodeError as error:
        fix = "save it as UTF-8; is this the official file?"
        raise UserError(f"the file is not UTF-8 text at byte {error.start}", where=str(path), fix=fix) from None
    except csv.Error as error:
        raise UserError(f"not CSV: {error}", where=str(path), fix="is this the official file?") from None


def _no_file(path: Path) -> UserError:
    return UserError(f"no such file: {path}", fix="see --help for the expected tree")
