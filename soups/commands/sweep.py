"""``soups sweep``: score many mixtures of the same checkpoints."""

from __future__ import annotations

from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import progress, show, spell
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.points import Point
    from soups.results import Result
    from soups.sweep import Sweep


def command(
    models: options.Models,
    out: options.ResultsOut,
    evaluator: options.EvaluatorName = None,
    program: options.Program = None,
    name: options.Names = None,
    points: Annotated[int | None, typer.Option(help="Points on each edge between two models; default 11.")] = None,
    limits: Annotated[
        str | None, typer.Option("--range", help="Of the second of two models, such as -0.5,1.5; with --points.")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="One point, such as 0.3,0.7 (0.3,0.7;1,0 with a --module); repeatable.")
    ] = None,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of tensor names that have coefficients of their own, swept too; repeatable."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="As --module, at several depths, COUNT:PATTERN; the group of the pattern is the layer."),
    ] = None,
    corners: Annotated[bool, typer.Option("--corners", help="Each model alone, such as trainings to compare.")] = False,
    random: Annotated[int | None, typer.Option(min=1, help="Random points instead, and each model alone.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random points.")] = 0,
    workers: options.Workers = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that share the points, with --cluster.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Run as jobs through submitit: slurm, or local.")] = None,
    cluster_arg: Annotated[
        list[str] | None, typer.Option(help="Of each job, key=value, such as slurm_partition=gpu; repeatable.")
    ] = None,
    arg: options.EvaluatorArgs = None,
    method: options.MethodName = "linear",
    param: options.Params = None,
    base: options.Base = None,
    extrapolate: options.Extrapolate = False,
    integers: options.IntegerPolicy = "error",
    ema: options.Ema = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Score mixtures of checkpoints; a killed sweep resumes.

    Finished points are kept in the folder, so that points can be added later. The models may be given by a recipe
    file without weights; its rules and policies then hold at every point. Under torchrun or srun, each process scores
    its share of the points.

    Example: soups sweep runs/cider runs/bleu --evaluator unival.evaluate:soup_evaluator -o runs/sweep

    Example: soups sweep recipe.yaml --command "python eval.py {model} --out {result}" -o runs/sweep
    """
    from soups.shares import finish, launched_share, submit, take_gpu
    from soups.sweep import check_distinct, run_sweep

    spec, args = options.evaluator_of(evaluator, program, arg)
    given = _from_flags(models, name, method, param, base, integers, extrapolate=extrapolate, ema=ema)
    depths = _depths(profile)
    swept = _sweep(given, spec, args, [*(module or ()), *depths], depths)
    num_models, num_parts = len(swept.checkpoints), 1 + len(swept.labels)
    design = _design(num_models, points, limits, weights, corners, random, seed, num_parts)
    swept.recipe(design[0]).check()
    check_distinct(swept)
    if cluster is not None:
        params = options.key_values("--cluster-arg", cluster_arg)
        started = submit(swept, design, out, num_jobs=jobs, cluster=cluster, params=params)
        finish(started)
        _show(run_sweep(swept, design, out), out, as_json)
        return
    if jobs > 1 or cluster_arg:
        raise UserError("jobs of what?", where="--jobs, --cluster-arg", fix="add --cluster slurm, or use --workers")
    share = launched_share()
    if share.count > 1:
        take_gpu()
    with progress(len(share.of(design))) as on_result:
        results = run_sweep(swept, design, out, on_result, workers, share=share)
    if share.index == 0:  # one document, not one per process
        _show(results, out, as_json)


def _show(results: list[Result], out: Path, as_json: bool) -> None:
    rows = [
        {"coefficients": dict(r.coefficients), "metrics": dict(r.metrics)}
        | ({"modules": {label: dict(part) for label, part in r.modules.items()}} if r.modules else {})
        for r in results
    ]
    lines = [f"{spell(r.every_coefficient)}   {spell(r.metrics)}" for r in results]
    show({"out": str(out), "points": rows}, [*lines, f"results in {out}"], as_json)


def _from_flags(
    models: list[Path],
    name: list[str] | None,
    method: str,
    param: list[str] | None,
    base: Path | None,
    integers: str,
    *,
    extrapolate: bool,
    ema: bool,
) -> dict[str, Any]:
    """Return what is mixed and how, as fields of a sweep: from a recipe file, or from models and flags."""
    if options.is_recipe(models):
        from soups.recipes.file import load_recipe

        if any([name, param, base, ema]) or (method, integers) != ("linear", "error"):
            raise UserError("a recipe file takes no flags of the merge", fix="write them into the recipe")
        recipe = load_recipe(models[0], is_swept=True)
        if extrapolate:
            fix = "write params: {extrapolate: true} into the recipe"
            raise UserError("a recipe file takes no flags of the merge", where="--extrapolate", fix=fix)
        return {key: getattr(recipe, key) for key in ("checkpoints", "method", "base", "integers", "rules", "policies")}
    checkpoints = options.open_models(models, name, ema=ema, base=base)
    bound = options.bound_method(method, param, extrapolate)
    opened = options.open_base(base, bound, checkpoints)
    return {"checkpoints": checkpoints, "method": bound, "base": opened, "integers": integers}


def _sweep(given: dict[str, Any], spec: str, args: dict[str, Any], modules: list[str], depths: dict[str, int]) -> Sweep:
    from soups.sweep import Sweep

    return Sweep(**given, evaluator=spec, args=args, modules=modules, depths=depths)


def _depths(profiles: list[str] | None) -> dict[str, int]:
    """Parse COUNT:PATTERN."""
    found: dict[str, int] = {}
    for text in profiles or []:
        count, colon, pattern = text.partition(":")
        if not (colon and pattern and count.isdecimal() and int(count) > 1):
            fix = r"give the number of depths, 2 or more, and a pattern: --profile '3:layers\.(\d+)\..*'"
            raise UserError(f"not COUNT:PATTERN: {text!r}", where="--profile", fix=fix)
        found[pattern] = int(count)
    return found


def _design(
    num_models: int,
    points: int | None,
    limits: str | None,
    weights: list[str] | None,
    corners: bool,
    random: int | None,
    seed: int,
    num_parts: int,
) -> list[Point]:
    """Return the points asked for: with modules, every combination of those of the model and of each module."""
    from soups import points as designs

    edges = {"--range" if points is None else "--points": points or limits}
    asked = {**edges, "--weights": weights, "--corners": corners, "--random": random}
    given = [option for option, value in asked.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other", fix="give one of them")
    if weights:
        lists = [options.numbers(text.replace(";", ",")) for text in weights]
        return designs.explicit(lists, num_models, num_parts)
    if random:
        alone = [corner * num_parts for corner in designs.corners(num_models)]
        drawn = [designs.draws(num_models, random, seed + part) for part in range(num_parts)]
        return [*alone, *(tuple(chain(*parts)) for parts in zip(*drawn, strict=True))]
    if corners:
        one = designs.corners(num_models)
    elif limits is None:
        one = designs.grid(num_models, 11 if points is None else points)
    else:
        one = _range(num_models, points, limits)
    return [tuple(chain(*parts)) for parts in product(one, repeat=num_parts)]


def _range(num_models: int, points: int | None, limits: str) -> list[Point]:
    from soups.points import segment

    ends = options.numbers(limits, "--range")
    if num_models != 2 or len(ends) != 2:
        what = f"a range is for two models, not {num_models}" if num_models != 2 else f"{limits!r} is no range"
        raise UserError(what, where="--range", fix="such as --range -0.5,1.5")
    return segment(11 if points is None else points, *ends)
