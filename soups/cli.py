"""The command line: ``soups merge``, ``soups sweep``, ``soups front``, ``soups methods``.

Nothing heavy is imported here: each command imports what it needs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from soups.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Mix the weights of models fine-tuned from one initialisation; draw what the mixtures trade off.",
)

Models = Annotated[list[Path], typer.Argument(help="Checkpoint folders (model.safetensors) or .safetensors files.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="Name of a model, once per model, in order; default: its folder."),
]
MethodName = Annotated[str, typer.Option("--method", help="Merge method; soups methods lists them.")]
Params = Annotated[
    list[str] | None, typer.Option("--param", help="Parameter of the method, key=value; may be repeated.")
]
Base = Annotated[Path | None, typer.Option("--base", help="The common initialisation, for methods that use it.")]
Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="Permit weights outside [0, 1] or that do not sum to 1.")
]
IntegerPolicy = Annotated[
    str, typer.Option("--integers", help="Integer tensors that differ between models: error, or first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print what a person did wrong in a few lines and exit with code 2; 130 when interrupted."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ValueError as error:
            # Evaluators have error classes of their own; one that says what, where and fix is a person's too.
            if not hasattr(error, "fix"):
                raise
            if kwargs.get("debug"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


@app.command()
@reports_errors
def merge(
    models: Models,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to create.")],
    weights: Annotated[str | None, typer.Option(help="One per model, such as 0.5,0.5; default: equal.")] = None,
    name: Names = None,
    method: MethodName = "linear",
    param: Params = None,
    base: Base = None,
    extrapolate: Extrapolate = False,
    integers: IntegerPolicy = "error",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check headers, print the plan, write nothing.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Merge checkpoints into a new one.

    Example: soups merge runs/cider runs/bleu --weights 0.3,0.7 -o runs/soup
    """
    from soups.merge import Recipe, plan
    from soups.merge import merge as write_merge
    from soups.state import check_free

    checkpoints = _open(models, name)
    point = _weights(weights) if weights is not None else (1 / len(models),) * len(models)
    recipe = Recipe(checkpoints, point, _method(method, param, extrapolate), _open_base(base), _integers(integers))
    summary = plan(recipe)
    check_free(out)
    if not dry_run:
        write_merge(recipe, out)
    summary |= {"out": str(out), "written": not dry_run}
    _print(summary, _merge_lines(summary), as_json)


@app.command()
@reports_errors
def sweep(
    models: Models,
    evaluator: Annotated[str, typer.Option(help="module:function, called with the first model and --arg.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of results; resumed if it is there.")],
    name: Names = None,
    points: Annotated[int | None, typer.Option(help="Points on each edge between two models; default 11.")] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="One point, such as 0.3,0.7; may be repeated, replaces --points.")
    ] = None,
    arg: Annotated[list[str] | None, typer.Option(help="Argument of the evaluator, key=value; repeatable.")] = None,
    method: MethodName = "linear",
    param: Params = None,
    base: Base = None,
    extrapolate: Extrapolate = False,
    integers: IntegerPolicy = "error",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score mixtures of checkpoints; finished points are kept, so a killed sweep resumes.

    Example: soups sweep runs/cider runs/bleu --evaluator unival.evaluate:soup_evaluator -o runs/sweep
    """
    from soups.points import explicit, grid
    from soups.sweep import Sweep, run_sweep

    if points is not None and weights:
        raise UserError("--points and --weights exclude each other", fix="give one of them")
    checkpoints = _open(models, name)
    design = (
        explicit([_weights(text) for text in weights], len(models))
        if weights
        else grid(len(models), 11 if points is None else points)
    )
    swept = Sweep(
        checkpoints,
        _method(method, param, extrapolate),
        evaluator,
        _key_values("--arg", arg),
        _open_base(base),
        _integers(integers),
    )
    with _progress(len(design)) as on_result:
        results = run_sweep(swept, design, out, on_result)
    rows = [{"coefficients": dict(r.coefficients), "metrics": dict(r.metrics)} for r in results]
    lines = [f"{_spell(r.coefficients)}   {_spell(r.metrics)}" for r in results]
    _print({"out": str(out), "points": rows}, [*lines, f"results in {out}"], as_json)


@app.command()
@reports_errors
def front(
    results_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of soups sweep.")],
    x: Annotated[str | None, typer.Option("--x", help="Metric of the horizontal axis; default: the first.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Metric of the vertical axis; default: the second.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Scores of the initialisation: a JSON file, or a folder with metrics.json."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to write; default: DIR.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Reference point of the hypervolume, such as 0.5,0.2; default: from the data."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Draw the front of two metrics: front.json, front.png, front.svg, front.html.

    Example: soups front runs/sweep --x CIDEr --y BLEU4
    """
    from soups.front import Bootstrap, choose_metrics, compute_front, read_init
    from soups.interactive import save_page
    from soups.results import read_results
    from soups.state import write_text

    out_dir = out or results_dir
    results = read_results(results_dir)
    x, y = choose_metrics(results, x, y)
    corner = None if reference is None else _weights(reference, "--reference")
    if corner is not None and len(corner) != 2:
        raise UserError(f"{len(corner)} numbers for two metrics", where="--reference", fix="give two: 0.5,0.2")
    data = compute_front(
        results,
        x,
        y,
        init=None if init is None else read_init(init),
        reference=corner,
        bootstrap=Bootstrap(num_resamples=resamples, seed=seed),
    )
    write_text(out_dir / "front.json", json.dumps(data, indent=2, allow_nan=False) + "\n")

    from soups.plot import caption, save_front

    paths = [
        out_dir / "front.json",
        *save_front(data, out_dir),
        save_page(data, results, caption(data), out_dir),
    ]
    knee = f"knee: {_spell(data['knee']['coefficients'])}"
    _print(data, [caption(data), *_margin_lines(data), knee, *(str(path) for path in paths)], as_json)


@app.command()
@reports_errors
def methods(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the merge methods, their parameters and defaults."""
    from soups.methods import get_method, method_names

    table = []
    for method_name in method_names():
        method = get_method(method_name)
        summary = (method.module.__doc__ or "").partition("\n")[0]
        table.append({"name": method_name, "summary": summary, "base": method.base, "params": dict(method.params)})
    lines = [f"{row['name']:<16} base {row['base']:<9} {row['summary']}" for row in table]
    _print({"methods": table}, lines, as_json)


def _open(paths: list[Path], names: list[str] | None) -> list[Any]:
    from soups.merge import check_names
    from soups.state import open_checkpoint

    if names and len(names) != len(paths):
        raise UserError(f"{len(names)} names for {len(paths)} models", where="--name", fix="give one name per model")
    checkpoints = [open_checkpoint(path, names[i] if names else None) for i, path in enumerate(paths)]
    check_names(checkpoints)
    return checkpoints


def _open_base(path: Path | None) -> Any:
    from soups.state import open_checkpoint

    return None if path is None else open_checkpoint(path)


def _method(name: str, params: list[str] | None, extrapolate: bool) -> Any:
    from soups.methods import get_method

    return get_method(name, _key_values("--param", params) | ({"extrapolate": True} if extrapolate else {}))


def _integers(policy: str) -> Any:
    if policy not in ("error", "first"):
        raise UserError(f"unknown policy {policy!r}", where="--integers", fix="choices: error, first")
    return policy


def _weights(text: str, option: str = "--weights") -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"not a list of numbers: {text!r}", where=option, fix="such as 0.5,0.5") from None


def _key_values(option: str, items: list[str] | None) -> dict[str, Any]:
    """Parse key=value; values are JSON (numbers, true, lists) or else text."""
    parsed: dict[str, Any] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise UserError(f"not key=value: {item!r}", where=option, fix=f"such as {option} split=val")
        try:
            parsed[key] = json.loads(value)
        except ValueError:
            parsed[key] = value
    return parsed


def _progress(num_points: int) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:  # a log file: one line per point
            count = itertools.count(1)
            yield lambda result, is_new: print(f"{next(count)}/{num_points}  {_spell(result.metrics)}", file=sys.stderr)
            return
        columns = (TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        last = TextColumn("{task.fields[last]}", markup=False)
        with Progress(*columns, last, console=console, transient=True) as p:
            task = p.add_task("sweep", total=num_points, last="")
            yield lambda result, is_new: p.update(task, advance=1, last=_spell(result.metrics))

    return bar()


def _spell(numbers: Any) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())


def _merge_lines(summary: dict[str, Any]) -> list[str]:
    count, size = summary["num_parameters"], summary["bytes_written"]
    dtypes = ", ".join(summary["dtypes"])
    done = "wrote" if summary["written"] else "would write"
    return [
        f"{summary['method']}: {_spell(summary['coefficients'])}",
        f"{summary['num_tensors']} tensors, {count:,} parameters, {dtypes}, {size / 1e6:.1f} MB",
        f"{done} {summary['out']}",
    ]


def _margin_lines(data: dict[str, Any]) -> list[str]:
    if data["margins"] is None:
        return ["margins over the straight line: not known, not every model was evaluated alone"]
    return [
        f"margin over the straight line, {metric}: min {row['min']['value']:.3f}, "
        f"max {row['max']['value']:.3f}, {row['num_violating']} of {len(data['points'])} below"
        for metric, row in data["margins"].items()
    ]


def _print(data: dict[str, Any], lines: list[str], as_json: bool) -> None:
    print(json.dumps(data, indent=2) if as_json else "\n".join(lines))


def main() -> None:
    """Run the command line."""
    app(prog_name="soups")
