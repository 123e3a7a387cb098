"""``soups sweep``: score many mixtures of the same checkpoints."""

from __future__ import annotations

from itertools import chain, product
from typing import TYPE_CHECKING, Annotated

import typer

from soups.commands import options
from soups.commands.output import progress, show, spell
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.points import Point


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
    corners: Annotated[bool, typer.Option("--corners", help="Each model alone, such as trainings to compare.")] = False,
    random: Annotated[int | None, typer.Option(min=1, help="Random points instead, and each model alone.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random points.")] = 0,
    workers: options.Workers = 1,
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
    """Score mixtures of checkpoints; finished points are kept, so a killed sweep resumes.

    Example: soups sweep runs/cider runs/bleu --evaluator unival.evaluate:soup_evaluator -o runs/sweep
    """
    from soups.sweep import Sweep, run_sweep

    spec, args = options.evaluator_of(evaluator, program, arg)
    checkpoints = options.open_models(models, name, ema=ema, base=base)
    bound = options.bound_method(method, param, extrapolate)
    design = _design(len(models), points, limits, weights, corners, random, seed, len(module or ()))
    swept = Sweep(
        checkpoints,
        bound,
        spec,
        args,
        options.open_base(base, bound, checkpoints),
        options.integer_policy(integers),
        module or (),
    )
    with progress(len(design)) as on_result:
        results = run_sweep(swept, design, out, on_result, workers)
    rows = [{"coefficients": dict(r.coefficients), "metrics": dict(r.metrics)} for r in results]
    lines = [f"{spell(r.coefficients)}   {spell(r.metrics)}" for r in results]
    show({"out": str(out), "points": rows}, [*lines, f"results in {out}"], as_json)


def _design(
    num_models: int,
    points: int | None,
    limits: str | None,
    weights: list[str] | None,
    corners: bool,
    random: int | None,
    seed: int,
    num_modules: int,
) -> list[Point]:
    """Return the points asked for: with modules, every combination of those of the model and of each module."""
    from soups import points as designs

    asked = {"--points": points or limits, "--weights": weights, "--corners": corners, "--random": random}
    given = [option for option, value in asked.items() if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other", fix="give one of them")
    if weights:
        lists = [options.numbers(text.replace(";", ",")) for text in weights]
        return designs.explicit(lists, num_models * (1 + num_modules))
    if corners:
        one = designs.corners(num_models)
    elif random:
        one = [*designs.corners(num_models), *designs.draws(num_models, random, seed)]
    elif limits is None:
        one = designs.grid(num_models, 11 if points is None else points)
    else:
        one = _range(num_models, points, limits)
    return [tuple(chain(*parts)) for parts in product(one, repeat=1 + num_modules)]


def _range(num_models: int, points: int | None, limits: str) -> list[Point]:
    from soups.points import segment

    ends = options.numbers(limits, "--range")
    if num_models != 2 or len(ends) != 2:
        raise UserError("a range is for two models", where="--range", fix="such as --range -0.5,1.5")
    return segment(11 if points is None else points, *ends)
