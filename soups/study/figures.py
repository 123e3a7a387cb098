"""The figures of a study, from its report alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from soups.figures import Inputs
from soups.figures.front import front_figure
from soups.figures.metrics_vs_lambda import metrics_plane
from soups.figures.spec import GREY, INK, PALETTE, Curve, Figure, Mark, Plane, Polygon, Spider, Spoke, shown, spell
from soups.metric_names import written
from soups.plot import save_figure
from soups.results import Result
from soups.study.evidence import MORL
from soups.study.parts import slug
from soups.study.schema import START

FOLDER = "figures"
Report = Mapping[str, Any]


def save_figures(report: Report, curves: Mapping[str, Sequence[Result]], root: Path) -> dict[str, str]:
    """Draw everything that the report has; return the file of each figure by name, relative to the root."""
    figures: dict[str, Figure] = {}
    for front in report["fronts"]:
        name = " | ".join(front["of"])
        inputs = Inputs(x=front["metrics"][0], y=front["metrics"][1])
        drawn = front_figure(front["front"], curves[name], inputs)
        figures[f"front {name}"] = replace(drawn, caption=front_caption(front, report))
        figures[f"metrics {name}"] = metrics_figure(curves[name], front, report)
    if report["spider"]:
        figures["spider"] = spider_figure(report["spider"])
    if report["merges"]:
        for metric in shown_metrics(report):
            figures[f"merges {metric}"] = merges_figure(report, metric)
    if report["paths"]:
        figures["barriers"] = barrier_figure(report)
        figures["paths"] = paths_figure(report)
    files = {}
    for name, figure in figures.items():
        save_figure(figure, root / FOLDER, slug(name), kinds=("png",))
        files[name] = f"{FOLDER}/{slug(name)}.png"
    return files


def front_caption(front: Report, report: Report) -> str:
    """Return the text under a front: the numbers of the report, which hold the spread of the seeds."""
    numbers, data, num_seeds = front["numbers"], front["front"], len(report["seeds"])
    seeds = f"; points are means of {num_seeds} seeds" if num_seeds > 1 else ""
    return (
        f"Hypervolume {spell(numbers['hypervolume/soups'])} in the box of all models.\n"
        f"Straight line, as many points, {spell(numbers['hypervolume/straight line'])}; "
        f"gain {spell(numbers['gain over the line'])}.\n"
        f"Area between front and straight line {spell(numbers['area above the chord'])}.\n"
        f"{data['bootstrap']['level']:.0%} bootstrap intervals over {data['num_samples']} samples{seeds}."
    )


def metrics_figure(results: Sequence[Result], front: Report, report: Report) -> Figure:
    """Draw every metric along the coefficient, also those that nobody was trained on."""
    start = next(row for row in report["models"] if row["role"] == START)
    scores = next(iter(start["scores"].values()))
    plane = metrics_plane(results, {metric: cell["value"] for metric, cell in scores.items()})
    return Figure("Metrics along the path", [plane], "Dashed: the straight line between the two specialists.")


def spider_figure(spider: Report) -> Figure:
    """Draw the experts, the uniform soup and MORL on all rewards."""
    values = spider["values"]
    spokes = []
    for metric in spider["metrics"]:
        column = [row[metric]["value"] for row in values.values()]
        spokes.append(Spoke(written(metric), min(column), max(column)))
    colours = {START: GREY, "uniform soup": INK, MORL: PALETTE[1]}
    others = iter(PALETTE[:1] + PALETTE[2:])
    polygons = [
        Polygon(
            "init" if name == START else name,
            [row[metric]["value"] for metric in spider["metrics"]],
            colours.get(name) or next(others, GREY),
            is_dashed=name in (START, MORL),
        )
        for name, row in values.items()
    ]
    caption = "Centre: the worst value of these models; rim: the best; rings at thirds."
    return Figure("Several rewards at once", [Spider(spokes, polygons)], caption)


def shown_metrics(report: Report) -> list[str]:
    """Return the metrics of a figure each: those of the specialists, and their mean."""
    specialists = report["study"]["specialists"].values()
    names = [specialist["metric"] for specialist in specialists if specialist["metric"]]
    return [metric for metric in dict.fromkeys([*names, "mean"]) if metric in report["labels"]]


def merges_figure(report: Report, metric: str) -> Figure:
    """Draw every model in the plane of the first split and another split, one panel per other split."""
    first, *others = report["splits"]
    if not others:
        return Figure(written(metric), [_ladder(report, metric, first)])
    panels = [_merges_plane(report, metric, first, other) for other in others]
    caption = f"{written(metric)}. Bars: 95 % bootstrap intervals over {report['num_samples']} samples."
    return Figure(f"{written(metric)} in and out of distribution", panels, caption, num_columns=min(2, len(panels)))


def _merges_plane(report: Report, metric: str, first: str, other: str) -> Plane:
    curves, colour = [], 0
    for row in report["models"]:
        if row["role"] not in ("specialist", "merge", START) or not _is_about(row["name"], metric, report):
            continue
        x, y = (row["scores"][split].get(metric) for split in (first, other))
        if x is None or y is None:
            continue
        interval = (x["low"], x["high"], y["low"], y["high"])
        details = {"Scores": {first: shown(x["value"]), other: shown(y["value"])}}
        is_merge = row["role"] == "merge"
        mark = Mark(
            x["value"],
            y["value"],
            label="" if is_merge else row["name"],
            is_named=not is_merge,
            interval=interval if is_merge else None,
            details=details,
        )
        merge_marker = "dot" if colour < len(PALETTE) else "ring"
        marker = {"merge": merge_marker, START: "cross"}.get(row["role"], "square")
        curves.append(
            Curve(
                row["name"] if is_merge else row["role"],
                [mark],
                PALETTE[colour % len(PALETTE)] if is_merge else GREY,
                line="none",
                marker=marker,  # pyright: ignore[reportArgumentType]
                in_legend=is_merge or not any(curve.name == row["role"] for curve in curves),
            )
        )
        colour += is_merge
    return Plane(first, other, curves, title=other)


def _is_about(name: str, metric: str, report: Report) -> bool:
    """Say whether a model belongs to the figure of a metric: merges made for one specialist belong to its own."""
    target = name.rpartition(": ")[2]
    specialist = report["study"]["specialists"].get(target)
    return name == target or specialist is None or specialist["metric"] == metric


def _ladder(report: Report, metric: str, split: str) -> Plane:
    marks = [
        Mark(row["scores"][split][metric]["value"], index, row["name"], True)
        for index, row in enumerate(report["models"])
        if metric in row["scores"][split]
    ]
    return Plane(written(metric), "", [Curve("models", marks, line="none")])


def barrier_figure(report: Report) -> Figure:
    """Draw the barrier of every path over the distance of its ends."""
    curves = []
    for index, group in enumerate(dict.fromkeys(path["group"] for path in report["paths"])):
        members = [path for path in report["paths"] if path["group"] == group]
        marks = []
        for path in members:
            barrier = path["numbers"]["barrier"]
            interval = (path["distance"], path["distance"], barrier["low"], barrier["high"])
            details = {"Path": {"between": " and ".join(path["of"]), "barrier": shown(barrier["value"])}}
            marks.append(Mark(path["distance"], barrier["value"], interval=interval, details=details))
        marker = "dot" if index < len(PALETTE) else "ring"
        curves.append(Curve(group, marks, PALETTE[index % len(PALETTE)], line="none", marker=marker))
    metric = written(report["paths"][0]["metric"])
    plane = Plane("distance of the two models, relative to their norm", f"barrier, {metric}", curves)
    return Figure(
        "Barrier and distance", [plane], "Barrier: the largest fall below the straight line between the ends."
    )


def paths_figure(report: Report) -> Figure:
    """Draw the score along every path."""
    curves = []
    for index, path in enumerate(report["paths"]):
        shares = np.linspace(0, 1, len(path["curve"]))
        marks = [Mark(float(share), value) for share, value in zip(shares, path["curve"], strict=True)]
        colour = PALETTE[index % len(PALETTE)]
        curves.append(Curve(path["group"], marks, colour))
        curves.append(Curve(path["group"], [marks[0], marks[-1]], colour, "dashed", "none", in_legend=False))
    plane = Plane("coefficient of the second model", written(report["paths"][0]["metric"]), curves)
    return Figure("Scores along the paths", [plane], "Dashed: the straight line between the ends.")
