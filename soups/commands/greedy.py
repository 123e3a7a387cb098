"""``soups greedy``: the average of the models that help each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import json_text, progress, show, spell


def command(
    models: options.Models,
    metric: Annotated[str, typer.Option(help="What must grow, on held-out samples.")],
    out: options.ResultsOut,
    evaluator: options.EvaluatorName = None,
    program: options.Program = None,
    name: options.Names = None,
    arg: options.EvaluatorArgs = None,
    ties: Annotated[str, typer.Option(help="A model that changes nothing: reject (model soups), accept (DiWA).")] = (
        "reject"
    ),
    save: Annotated[Path | None, typer.Option(help="Folder to create with the soup.")] = None,
    workers: options.Workers = 1,
    integers: options.IntegerPolicy = "error",
    ema: options.Ema = False,
    base: options.AdapterBase = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Average the best model with each next one that raises a metric.

    Finished trials are kept: a killed run resumes.

    Example: soups greedy runs/*/ --evaluator evaluate:held_out --metric accuracy -o runs/greedy --save runs/soup
    """
    from soups.engine.output import check_free
    from soups.merge import Recipe, merge
    from soups.search.greedy import greedy_soup
    from soups.state import write_text
    from soups.sweep import Sweep

    checkpoints = options.open_models(models, name, ema=ema, base=base)
    spec, args = options.evaluator_of(evaluator, program, arg)
    method = options.bound_method("linear", None, False)
    sweep = Sweep(checkpoints, method, spec, args, None, integers)
    if save is not None:
        check_free(save)
    with progress(2 * len(checkpoints) - 1, "greedy") as on_result:
        data = greedy_soup(sweep, metric, out, ties=options.tie_rule(ties), on_result=on_result, num_workers=workers)
    write_text(out / "greedy.json", json_text(data) + "\n")
    if save is not None:
        weights = [data["coefficients"][checkpoint.name] for checkpoint in checkpoints]
        merge(Recipe(checkpoints, weights, method, None, sweep.integers), save)
    data |= {"saved": None if save is None else str(save)}
    show(data, _lines(data, out), as_json)


def _lines(data: dict[str, Any], out: Path) -> list[str]:
    lines = [
        f"{'kept' if trial['kept'] else 'left'}  {trial['model']:<24}{data['metric']} {trial['score']:.6g}"
        for trial in data["trials"]
    ]
    single = data["best_single"]
    lines.append(
        f"greedy soup of {len(data['members'])} of {len(data['trials'])}: {data['metric']} {data['score']:.6g}, "
        f"best single model {single['model']} {single['score']:.6g}"
    )
    lines.append(spell(data["coefficients"]))
    return [*lines, f"scores in {out}", *([f"wrote {data['saved']}"] if data["saved"] else [])]
