"""``soups pick``: coefficients for one user's preference."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import show, spell
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.search.pick import Table


def command(
    results_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of soups sweep.")],
    preference: Annotated[
        str, typer.Option(help="A weight per metric, such as CIDEr=0.7,BLEU4=0.3; they need not sum to 1.")
    ],
    refine: Annotated[
        int, typer.Option(min=0, help="Score up to this many further points around the best one; needs the models.")
    ] = 0,
    by: Annotated[
        str, typer.Option(help="How: halving, or with the extra 'search' tpe or cma, for many coefficients.")
    ] = "halving",
    recipe: Annotated[
        Path | None, typer.Option(help="Recipe file to write, with which soups merge makes the choice.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Weigh metrics as they are, not divided by their range among the models.")
    ] = False,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the samples in the cross-validation.")] = 5,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the parts and of the bootstrap.")] = 0,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Choose coefficients for a user who weighs the metrics.

    Without --refine it evaluates no model.

    Example: soups pick runs/sweep --preference CIDEr=0.7,BLEU4=0.3 --refine 4
    """
    import yaml

    from soups.recipes.chosen import command_of, recipe_of
    from soups.results import SWEEP_NAME, read_manifest, read_results
    from soups.search.pick import pick, table_of
    from soups.search.sampling import check_kind
    from soups.state import check_file, write_text

    check_file(recipe)
    check_kind(by)
    wanted = options.named_numbers(preference, "--preference")
    num_new = _refine(results_dir, wanted, refine, by, raw=raw, seed=seed) if refine else 0
    table = table_of(read_results(results_dir), wanted, raw=raw)
    data = pick(table, num_folds=folds, num_resamples=resamples, seed=seed)
    manifest = read_manifest(results_dir)
    made_by = manifest and recipe_of(manifest, data["choice"]["coefficients"])
    words = made_by and command_of(made_by)
    merge = shlex.join([*words, "-o", "SOUP"]) if words else None
    data |= {"raw": raw, "has_experts": table.experts is not None, "num_new_points": num_new, "merge": merge}
    if recipe is not None:
        if made_by is None:
            fix = "give the output of soups sweep"
            raise UserError(f"no {SWEEP_NAME} in this folder", where=str(results_dir), fix=fix)
        write_text(recipe, yaml.safe_dump(made_by, sort_keys=False))
        data |= {"recipe": str(recipe)}
    show(data, _lines(data), as_json)


def _refine(results_dir: Path, preference: dict[str, float], num_points: int, by: str, *, raw: bool, seed: int) -> int:
    """Score further points: around the best one, or those of a search; return how many."""
    import numpy as np

    from soups.results import read_results
    from soups.scoring import Scorer
    from soups.search.pick import nearest, next_point, table_of
    from soups.search.sampling import HALVING, sampler
    from soups.sweep import reopen_sweep, run_sweep

    def table() -> Table:
        return table_of(read_results(results_dir), preference, raw=raw)

    sweep = reopen_sweep(results_dir)
    if "extrapolate" in sweep.method.params:  # not recorded; new points lie between those that were permitted
        sweep = replace(sweep, method=replace(sweep.method, params={**sweep.method.params, "extrapolate": True}))
    scorer = Scorer(sweep, results_dir)
    search = None
    if by != HALVING:
        known = table()
        num_models = len(sweep.checkpoints)
        search = sampler(by, known.coefficients, known.utilities.mean(axis=1), num_models, seed)
    for count in range(num_points):
        point = search.ask() if search else next_point(table())
        if point is None:
            return count
        (result,) = run_sweep(sweep, [point], results_dir, scorer=scorer)
        if search:
            now = table()
            search.tell(float(now.utilities[nearest(now.coefficients, np.array(point))].mean()))
        print(f"{spell(result.coefficients)}   {spell(result.metrics)}", file=sys.stderr)
    return num_points


def _lines(data: dict[str, Any]) -> list[str]:
    among = "the models" if data["has_experts"] else "the points"
    scale = "as they are" if data["raw"] else f"in units of their range among {among}"
    lines = [
        f"preference: {spell(data['preference'])}, metrics {scale}",
        f"{data['num_points']} points, {data['num_samples']} samples",
    ]
    for row in data["policies"]:
        utility, held_out = row["utility"], row["held_out_utility"]
        unseen = "" if held_out is None else f"   on unseen samples {held_out:.4f}"
        if row["measured_at"] != row["coefficients"]:
            unseen += f"   (measured at {spell(row['measured_at'])})"
        lines.append(
            f"  {row['policy']:<14}{spell(row['coefficients'])}   utility {utility['value']:.4f} "
            f"[{utility['low']:.4f}, {utility['high']:.4f}]{unseen}"
        )
    lines.append(f"choice, by {data['choice']['policy']}: {spell(data['choice']['coefficients'])}")
    lines += [f"soups merge {data['recipe']} -o SOUP"] if "recipe" in data else []
    return [*lines, data["merge"]] if data["merge"] and "recipe" not in data else lines
