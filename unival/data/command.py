"""`unival data`: look at a data set, and make a manifest of one's own."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from unival.errors import UserError
from unival.options import JsonOption

app = typer.Typer(help="Data sets: look at one, make one of your own files.", no_args_is_help=True)
RootOption = Annotated[Path | None, typer.Option("--media-root", help="Folder of relative media paths.")]
SHOWN_PROBLEMS = 20
SHOWN_LEFT_OUT = 5


@app.command()
def check(
    manifest: Annotated[str, typer.Argument(help="Manifest (.jsonl), table (.tsv) or archives (.tar, patterns).")],
    columns: Annotated[
        str | None, typer.Option("--columns", help="Of a table: a layout such as caption, or field names with commas.")
    ] = None,
    media_root: RootOption = None,
    task: Annotated[str | None, typer.Option("--task", help="Also check what this task needs.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Decoding processes.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time that one row may take.")] = 30.0,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Contact sheet to write (.png or .jpg).")] = None,
    tiles: Annotated[int, typer.Option("--tiles", min=1, max=200, help="Rows on the contact sheet.")] = 40,
    as_json: JsonOption = False,
) -> None:
    """Decode every row; report bad ones with file and line, and end with code 1 if there are any.

    Example: unival data check data/own/manifest.jsonl --task caption --sheet sheet.png
    """
    from unival.data.inspect import inspect_rows, write_sheet

    source = _open(manifest, columns, media_root, limit)
    found, looks = inspect_rows(source, workers, seconds, tiles, _probe(task))
    report, failure = found.report(), None
    if sheet is not None:
        try:
            write_sheet(looks, sheet)
            report["sheet"] = str(sheet)
        except UserError as error:  # after all rows were decoded, their report is printed all the same
            failure = error
    if as_json:
        print(json.dumps(report))
    else:
        _print(report, task)
    if failure is not None:
        raise failure
    if found.problems:
        raise typer.Exit(1)


@app.command()
def make(
    source: Annotated[Path, typer.Argument(help="CSV file, or folder of media.")],
    kind: Annotated[Literal["csv", "folder"], typer.Option("--from", help="What the source is.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Manifest; by default in the same folder.")] = None,
    field: Annotated[
        list[str] | None, typer.Option("--field", help="FIELD=COLUMN, where a header is not understood.")
    ] = None,
    no_media: Annotated[bool, typer.Option("--no-media", help="Of a CSV file: texts alone, without media.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing manifest.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a manifest for your own data.

    Example: unival data make photos.csv --from csv --field captions=notes
    """
    from unival.data.make import left_out_of_csv, left_out_of_folder, rows_of_csv, rows_of_folder, write_manifest

    fields = dict(_pair(text) for text in field or [])
    rows = rows_of_csv(source, fields, not no_media) if kind == "csv" else rows_of_folder(source)
    folder = source if kind == "folder" else source.parent
    target = out or folder / ("manifest.jsonl" if kind == "folder" else f"{source.stem}.jsonl")
    num_rows = write_manifest(rows, target, force)
    is_elsewhere = target.resolve().parent != folder.resolve()
    report: dict[str, Any] = {"manifest": str(target), "rows": num_rows}
    if is_elsewhere:
        report["media_root"] = str(folder.resolve())
    left_out = left_out_of_folder(folder, target) if kind == "folder" else left_out_of_csv(source, fields, not no_media)
    if left_out:
        report["left_out"] = left_out
    if as_json:
        print(json.dumps(report))
        return
    print(f"wrote {target}: {num_rows} rows")
    if is_elsewhere:
        print(f"its media paths are relative to another folder: media_root: {report['media_root']}")
    if left_out:
        shown = ", ".join(left_out[:SHOWN_LEFT_OUT]) + (", ..." if len(left_out) > SHOWN_LEFT_OUT else "")
        kinds = "no known media or linked folders" if kind == "folder" else "columns of no known field"
        print(UserError(f"{len(left_out)} left out, {kinds}: {shown}"))


def _open(name: str, columns: str | None, media_root: Path | None, limit: int | None) -> Any:
    from unival.data.archive import ArchiveRows
    from unival.data.manifest import ManifestRows
    from unival.data.table import LAYOUTS, TableRows

    for kind, is_so in (("csv", name.lower().endswith(".csv")), ("folder", Path(name).is_dir())):
        if is_so:
            raise UserError("not a manifest", name, f"make one first: unival data make {name} --from {kind}")
    if name.endswith(".tar"):
        return ArchiveRows(name, limit=limit)
    if columns is not None:
        return TableRows(name, columns if "," not in columns else columns.split(","), limit, media_root)
    if name.endswith(".tsv"):
        raise UserError("a table needs --columns", where=name, fix=f"one of {', '.join(LAYOUTS)}, or field names")
    return ManifestRows(name, limit, media_root, max_checked=0)


def _probe(task: str | None) -> Any:
    if task is None:
        return None
    from unival.data.fields import media_of
    from unival.tasks.base import get_task

    get_task(task)  # an unknown one is no problem of the rows

    def probe(row: Any) -> bool:
        found = media_of(row)
        known = get_task(task, {"modality": found[0] if found else "text"})
        return bool(known.example(row).target) and known.is_labelled(row)

    return probe


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise UserError(f"--field {text!r} is not FIELD=COLUMN", fix="such as --field captions=notes")
    return name, column


def _print(report: dict[str, Any], task: str | None) -> None:
    media = ", ".join(f"{number} {kind}" for kind, number in report.get("media", {}).items())
    print(f"{report['rows']} rows ({media}), {report['good']} good")
    if report["repeated"]:
        print(f"{report['repeated']} rows have the uid of another row about the same medium")
    if report["unlabelled"]:
        print(f"{report['unlabelled']} have no label for this task: they can be predicted, not learned or scored")
    if task is not None and len(report.get("media", {})) > 1:
        print("several kinds of media: a task in a configuration reads one of them (`task_args: {modality: ...}`)")
    for name, unit in (("width", " px"), ("height", " px"), ("seconds", " s")):
        if name in report:
            low, middle, high = report[name]
            print(f"{name}: {low} to {high}{unit}, median {middle}")
    problems = report.get("problems", [])
    for problem in problems[:SHOWN_PROBLEMS]:
        print(UserError(problem["what"], where=problem["where"], fix=problem.get("fix")))
    if len(problems) > SHOWN_PROBLEMS:
        print(f"and {len(problems) - SHOWN_PROBLEMS} more: --json lists all")
    if "sheet" in report:
        print(f"contact sheet: {report['sheet']}")
