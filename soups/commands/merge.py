"""``soups merge``: checkpoints in, one checkpoint out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import show, spell
from soups.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from soups.merge import Recipe
    from soups.methods import Method


def command(
    models: options.Models,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to create.")] = None,
    weights: Annotated[str | None, typer.Option(help="One per model, such as 0.5,0.5; default: equal.")] = None,
    name: options.Names = None,
    method: options.MethodName = "linear",
    param: options.Params = None,
    base: options.Base = None,
    extrapolate: options.Extrapolate = False,
    integers: options.IntegerPolicy = "error",
    ema: options.Ema = False,
    dtype: Annotated[str | None, typer.Option(help="Of the result: float32, bfloat16, float16 or float64.")] = None,
    shard_size: Annotated[str | None, typer.Option(help="Largest file of weights, such as 5GB; default: one.")] = None,
    lora_mode: Annotated[
        str, typer.Option(help="Adapters: delta, exact on top of their base; or one adapter: factor, cat, svd-RANK.")
    ] = "delta",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check headers, print the plan, write nothing.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how every tensor would be made, write nothing.")
    ] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Merge checkpoints into a new one, by flags or by a recipe file.

    A recipe is one of ours or of mergekit.

    Example: soups merge runs/cider runs/bleu --weights 0.3,0.7 -o runs/soup

    Example: soups merge recipe.yaml -o runs/soup
    """
    from soups.merge import Recipe
    from soups.recipes.policies import Policies

    if out is None:
        if not explain:
            raise UserError("no output folder", where="--out", fix="give the folder to create: -o DIR")
        out = Path()  # nothing is written
    if options.is_recipe(models):
        flags = [weights, name, param, base, extrapolate, ema, dtype]
        if any(flags) or (method, integers, lora_mode) != ("linear", "error", "delta"):
            raise UserError("a recipe file takes no flags of the merge", fix="write them into the recipe")
        from soups.recipes.file import load_recipe

        recipe = load_recipe(models[0])
        _finish(recipe, out, shard_size, explain=explain, dry_run=dry_run, as_json=as_json)
        return
    point = options.numbers(weights) if weights is not None else (1 / len(models),) * len(models)
    bound = options.bound_method(method, param, extrapolate)
    if lora_mode != "delta":
        if any([base, ema, dtype, shard_size, explain]):
            what = "one adapter has no --base, --ema, --dtype, --shard-size or --explain"
            raise UserError(what, where="--lora-mode", fix="leave them out, or give --lora-mode delta")
        _merge_adapters(models, name, point, lora_mode, out, bound, dry_run=dry_run, as_json=as_json)
        return
    checkpoints = options.open_models(models, name, ema=ema, base=base)
    recipe = Recipe(
        checkpoints,
        point,
        bound,
        options.open_base(base, bound, checkpoints),
        integers,
        policies=Policies(dtype=_dtype(dtype)),
    )
    _finish(recipe, out, shard_size, explain=explain, dry_run=dry_run, as_json=as_json)


def _finish(recipe: Recipe, out: Path, shard_size: str | None, *, explain: bool, dry_run: bool, as_json: bool) -> None:
    """Explain, plan or carry out a recipe, and print it."""
    from soups.engine.output import check_free
    from soups.engine.stream import NotFinite
    from soups.merge import merge, plan

    if explain:
        from soups.recipes.file import explain as table
        from soups.recipes.file import explain_lines

        recipe.check()
        show({"tensors": table(recipe)}, explain_lines(recipe), as_json)
        return
    shard_bytes = None if shard_size is None else options.num_bytes(shard_size, "--shard-size")
    summary = plan(recipe)
    check_free(out)
    not_finite = NotFinite({}, {}) if dry_run else merge(recipe, out, shard_bytes=shard_bytes)
    summary |= {"overflows": not_finite.overflows, "not_finite_before": not_finite.before}
    summary |= {"out": str(out), "written": not dry_run}
    show(summary, _lines(summary), as_json)


def _dtype(name: str | None) -> str | None:
    """Return a dtype of torch under its name in safetensors."""
    known = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
    if name is not None and name not in known:
        raise UserError(f"unknown dtype {name!r}", where="--dtype", fix=did_you_mean(name, known))
    return None if name is None else known[name]


def _merge_adapters(
    models: Sequence[Path],
    names: Sequence[str] | None,
    point: Sequence[float],
    mode: str,
    out: Path,
    method: Method,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from soups.adapters import merge_adapters
    from soups.points import explicit

    if method.name != "linear":
        raise UserError(
            f"method {method.name!r} needs whole weights", where="--lora-mode", fix="give --lora-mode delta"
        )
    explicit([point], len(models))
    labels = list(names or [path.resolve().name for path in models])
    extrapolate = method.params["extrapolate"]
    summary = merge_adapters(models, labels, point, mode, out, extrapolate=extrapolate, dry_run=dry_run)
    error = "not known before it is made" if dry_run else f"{summary['relative_error']:.2e}"
    lines = [f"{mode}: {spell(summary['coefficients'])}", f"relative error of the update: {error}"]
    done = "would write" if dry_run else "wrote"
    show(summary | {"out": str(out)}, [*lines, f"{done} {out}"], as_json)


def _lines(summary: dict[str, Any]) -> list[str]:
    count, size = summary["num_parameters"], summary["bytes_written"]
    dtypes = ", ".join(summary["dtypes"])
    done = "wrote" if summary["written"] else "would write"
    tensors = f"{summary['num_tensors']} tensor{'s' * (summary['num_tensors'] != 1)}"
    seconds = f"{summary['seconds']:.0f} s" if summary["seconds"] >= 1 else "under 1 s"
    statistics = len(summary["mixed_statistics"])
    note = f"note: {statistics} batch-norm statistics are mixed too, and fit no mixture; see batch_norm in recipes"
    return [
        f"{summary['method']}: {spell(summary['coefficients'])}",
        f"{tensors}, {count:,} parameters, {dtypes}, {size / 1e6:.1f} MB",
        f"predicted: {summary['bytes_memory'] / 1e6:.0f} MB of memory, {seconds} from a cold disk",
        *([note] if statistics else []),
        *(f"warning: {line}" for line in summary["disagreements"]),
        *_not_finite(summary),
        f"{done} {summary['out']}",
    ]


def _not_finite(summary: dict[str, Any]) -> list[str]:
    """Warn of entries that are infinite or no numbers, by what made them so."""

    def counted(found: dict[str, int]) -> str:
        others = f", and of {len(found) - 1} more" if len(found) > 1 else ""
        return f"{(num := sum(found.values())):,} {'entries' if num > 1 else 'entry'} of {next(iter(found))}{others}"

    warnings = [
        f"warning: infinite or not a number in {model} already, and so in the result: {counted(found)}"
        for model, found in summary["not_finite_before"].items()
    ]
    if overflows := summary["overflows"]:
        dtypes = ", ".join(summary["dtypes"])
        fix = "give a wider --dtype, such as float32"
        warnings.append(f"warning: overflowed: {counted(overflows)}; {dtypes} cannot hold them: {fix}")
    return warnings
