"""``soups diff``: how far models are from each other, in weights and in scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import json_text, progress, show
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.results import Result


def command(
    models: options.Models,
    base: Annotated[Path | None, typer.Option(help="The common initialisation; task vectors need it.")] = None,
    name: options.Names = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of a sweep of these models, for barriers and disagreement.")
    ] = None,
    evaluator: options.EvaluatorName = None,
    program: options.Program = None,
    arg: options.EvaluatorArgs = None,
    points: Annotated[int, typer.Option(min=3, help="Points on each path, with an evaluator.")] = 11,
    integers: options.IntegerPolicy = "error",
    ema: options.Ema = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write.")] = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Compare models by module, and along the path between them.

    The path needs the scores of a sweep, or an evaluator.

    Example: soups diff runs/cider runs/bleu --base runs/init --results runs/sweep
    """
    from soups.diff import diff
    from soups.path import barriers, disagreement, paths
    from soups.state import check_file, write_text

    check_file(out)
    checkpoints = options.open_models(models, name, ema=ema, base=base)
    if len(checkpoints) < 2:
        raise UserError("one model has nothing to differ from", where="MODELS", fix="give two or more")
    data = diff(checkpoints, options.open_base(base))
    scored = _scored(checkpoints, results, evaluator, program, arg, points, integers)
    data["barriers"] = {pair: barriers(path) for pair, path in paths(scored).items()}
    data["disagreement"] = disagreement(scored)
    if out is not None:
        write_text(out, json_text(data) + "\n")
    lines = _lines(data)
    if scored and not data["barriers"]:
        lines.append("no barriers: they take both models alone and a point between them")
    show(data, lines, as_json)


def _scored(
    checkpoints: list[Any],
    results: Path | None,
    evaluator: str | None,
    program: str | None,
    arg: list[str] | None,
    points: int,
    integers: str,
) -> list[Result]:
    """Return the scores along the paths: those of a folder, completed if there is an evaluator."""
    from soups.points import grid
    from soups.sweep import Sweep, run_sweep

    if evaluator is None and program is None:
        return [] if results is None else _results_of(checkpoints, results)
    if results is None:
        raise UserError("nowhere to keep the scores", where="--results", fix="give a folder: --results runs/path")
    spec, args = options.evaluator_of(evaluator, program, arg)
    method = options.bound_method("linear", None, False)
    sweep = Sweep(checkpoints, method, spec, args, None, integers)
    design = [point for point in grid(len(checkpoints), points) if sum(weight != 0 for weight in point) < 3]
    with progress(len(design), "path") as on_result:
        return run_sweep(sweep, design, results, on_result)


def _results_of(checkpoints: list[Any], folder: Path) -> list[Result]:
    """Return the scores in the folder of a sweep of these models."""
    from soups.results import read_manifest, read_results

    swept = {entry["sha256"] for entry in ((read_manifest(folder) or {}).get("checkpoints") or {}).values()}
    other = next((c.name for c in checkpoints if c.digest not in swept), None) if swept else None
    if other is not None:
        raise UserError(f"a sweep of other models: {other!r} is none of them", where=str(folder), fix="sweep these")
    return read_results(folder)


def _lines(data: dict[str, Any]) -> list[str]:
    return [*_weight_lines(data), *_score_lines(data)]


def _weight_lines(data: dict[str, Any]) -> list[str]:
    lines = []
    for module, row in data["modules"].items():
        for pair, distance in row["distance"].items():
            text = f"{module:<32}{row['num_entries']:>12,}  {pair}  distance {distance:.4g}"
            if data["base"]:
                text += f"  cosine {_number(row['cosine'][pair])}  signs {_number(row['sign_agreement'][pair])}"
            lines.append(text)
    updates = data["modules"].get("all", {}).get("relative_update", {})
    lines += [f"{model}: update {_number(value)} of the norm of the base" for model, value in updates.items()]
    for pair, check in data["permutation"].items():
        if check:
            lines.append(f"{pair}: {check['matched']:.1%} of {check['num_units']} units match their own")
    return lines + [f"integers differ: {name}" for name in data["integers"]]


def _score_lines(data: dict[str, Any]) -> list[str]:
    lines = []
    for pair, table in data["barriers"].items():
        for metric, row in table.items():
            parts = (f"{key} {row[key]['value']:.4g}" for key in ("chord", "mean_of_ends", "gain"))
            lines.append(f"{pair}: barrier of {metric}: {', '.join(parts)}")
    for pair, row in data["disagreement"].items():
        for metric, numbers in row["metrics"].items():
            parts = (f"{key} {_number(value)}" for key, value in numbers.items())
            lines.append(f"{pair}: {metric}: {', '.join(parts)}")
        if row["outputs"]:
            lines.append(f"{pair}: {row['outputs']['share']:.1%} of {row['outputs']['num_samples']} outputs differ")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
