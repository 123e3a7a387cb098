"""``soups front``: what the points of a sweep trade off, as data, figure and page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import show, spell
from soups.errors import UserError
from soups.methods._weights import sums_to_one

RESAMPLES = {2: 1000, 3: 200}  # by the number of metrics: hypervolumes of more take longer
FEW_RESAMPLES = 50


def command(
    results_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of soups sweep.")],
    x: Annotated[str | None, typer.Option("--x", help="Metric of the horizontal axis; default: the first.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Metric of the vertical axis; default: the second.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Further metric of the front; repeatable. Every pair is drawn.")
    ] = None,
    init: options.InitScores = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write; default: DIR.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Reference point of the hypervolume, such as 0.5,0.2; default: from the data."),
    ] = None,
    compare: options.Compared = None,
    resamples: Annotated[
        int | None, typer.Option(min=1, help="Bootstrap resamples; default: 1000 for two metrics, fewer for more.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Draw the front of two or more metrics and measure it.

    Writes front.json, front.png, front.svg and front.html.

    Example: soups front runs/sweep --x CIDEr --y BLEU4 --compare morl=runs/morl
    """
    from soups.figures.front import caption, front_figure
    from soups.front import Bootstrap, choose_metrics, choose_more, compute_front, read_init
    from soups.interactive import save_page
    from soups.results import read_results
    from soups.state import write_text

    out_dir = out or results_dir
    results = read_results(results_dir)
    x, y = choose_metrics(results, x, y)
    metrics = (x, y, *choose_more(results, also or (), (x, y)))
    corner = None if reference is None else options.numbers(reference, "--reference")
    if corner is not None and len(corner) != len(metrics):
        what = f"{len(corner)} numbers for {len(metrics)} metrics"
        raise UserError(what, where="--reference", fix="give one per metric: 0.5,0.2")
    data = compute_front(
        results,
        x,
        y,
        more=metrics[2:],
        init=None if init is None else read_init(init),
        reference=corner,
        bootstrap=Bootstrap(resamples or RESAMPLES.get(len(metrics), FEW_RESAMPLES), seed=seed),
        series=options.read_series("--compare", compare, metrics),
    )
    write_text(out_dir / "front.json", json.dumps(data, indent=2, allow_nan=False) + "\n")

    from soups.plot import save_figure

    figure = front_figure(data, results)
    paths = [out_dir / "front.json", *save_figure(figure, out_dir, "front"), save_page(figure, out_dir, "front")]
    knee = f"knee: {spell(data['knee']['coefficients'])}, in {data['knee']['share_of_resamples']:.0%} of the resamples"
    show(
        data,
        [caption(data), *_margin_lines(data), *_comparison_lines(data), knee, *(str(path) for path in paths)],
        as_json,
    )


def _comparison_lines(data: dict[str, Any]) -> list[str]:
    comparison = data["comparison"]
    lines = ["in the box of all points, reference at its worst corner:"]
    for row in comparison["sets"]:
        for part in (row, row["equal"]) if row["equal"]["num_points"] < row["num_points"] else (row,):
            lines.append(
                f"  {row['name']:<16}{part['num_points']:>4} points   "
                f"HV {part['hypervolume']['value']:.4f}   IGD+ {part['igd_plus']['value']:.4f}   "
                f"epsilon {part['epsilon']['value']:.4f}"
            )
    for name, row in comparison["coverage"].items():
        lines.append(
            f"soups match {row['num_points'] - row['num_uncovered']} of {row['num_points']} points of {name}; "
            f"shift to match all: {row['epsilon']:.4f}"
        )
    return lines


def _margin_lines(data: dict[str, Any]) -> list[str]:
    if data["margins"] is None:
        is_mean = all(sums_to_one(point["coefficients"].values()) for point in data["points"])
        why = "not every model was evaluated alone" if is_mean else "coefficients do not sum to 1"
        return [f"margins over the straight line: not known, {why}"]
    area = data["straight_line"]["area"]
    text = "" if area is None else f"{area['value']:.4f} [{area['low']:.4f}, {area['high']:.4f}] of the box of its ends"
    above = [f"area above the straight line: {text}"] if text else []
    num_judged = sum(min(point["coefficients"].values()) >= 0 for point in data["points"])  # beyond a model is no line
    return above + [
        f"margin over the straight line, {metric}: min {row['min']['value']:.3f}, "
        f"max {row['max']['value']:.3f}, {row['num_violating']} of {num_judged} below"
        for metric, row in data["margins"].items()
    ]
