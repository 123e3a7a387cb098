"""``soups plot``: every other figure of the papers, from stored results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soups.commands import options
from soups.commands.output import show
from soups.errors import UserError
from soups.figures import kind_names

if TYPE_CHECKING:
    from soups.figures import Fit, Inputs


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"Kind of figure: {', '.join(kind_names())}.")],
    sweeps: Annotated[
        list[str] | None, typer.Argument(metavar="[SWEEPS]...", help="Output folders of soups sweep: DIR or NAME=DIR.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")] = Path(),
    x: Annotated[str | None, typer.Option("--x", help="Metric of the horizontal axis; default: the first.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Metric of the vertical axis; default: the second.")] = None,
    init: options.InitScores = None,
    compare: options.Compared = None,
    trajectory: Annotated[
        list[str] | None,
        typer.Option(help="Scores of one training over time, NAME=PATH of a sweep or of a JSON file; repeatable."),
    ] = None,
    line: Annotated[str, typer.Option(help="Through the soups: polyline, smooth, steps or none.")] = "polyline",
    columns: Annotated[int, typer.Option(min=1, help="Columns of small multiples.")] = 3,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Draw a figure as PNG, SVG and an interactive page.

    Writes KIND.png, KIND.svg and KIND.html, where a click on a point shows its samples.

    Example: soups plot spider runs/sweep morl=runs/morl --init runs/init/metrics.json -o figures
    """
    from soups.figures import draw

    figure = draw(kind, _inputs(kind, sweeps or [], x, y, init, compare, trajectory, line, columns))

    from soups.interactive import save_page
    from soups.plot import save_figure

    paths = [*save_figure(figure, out, kind), save_page(figure, out, kind)]
    data = {"kind": kind, "title": figure.title, "files": [str(path) for path in paths]}
    show(data, [figure.title, *([figure.caption] if figure.caption else []), *data["files"]], as_json)


def _inputs(
    kind: str,
    sweeps: list[str],
    x: str | None,
    y: str | None,
    init: Path | None,
    compare: list[str] | None,
    trajectory: list[str] | None,
    line: str,
    columns: int,
) -> Inputs:
    from soups.figures import Inputs
    from soups.front import choose_metrics, read_init
    from soups.results import read_results

    named = {}
    for item in sweeps:
        name, equals, path = item.rpartition("=")
        name = name if equals else Path(path).resolve().name
        if name in named:
            raise UserError(f"two sweeps are called {name!r}", where="SWEEPS", fix="name them: NAME=DIR")
        named[name] = read_results(Path(path))
    series, trajectories = {}, {}
    if compare or trajectory:
        first = next(iter(named.values()), None)
        if not first:
            raise UserError("nothing to compare with", where="SWEEPS", fix="give the folder of a sweep first")
        metrics = choose_metrics(first, x, y)
        series = options.read_series("--compare", compare, metrics)
        trajectories = options.read_series("--trajectory", trajectory, metrics)
    scores = None if init is None else read_init(init)
    return Inputs(named, x, y, scores, series, trajectories, _fit(line), columns)


def _fit(line: str) -> Fit:
    if line == "polyline" or line == "smooth" or line == "steps" or line == "none":
        return line
    raise UserError(f"unknown line {line!r}", where="--line", fix="choices: polyline, smooth, steps, none")
