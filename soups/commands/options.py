"""Options that several commands share, and the words of the command line turned into objects."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.errors import UserError

if TYPE_CHECKING:
    from soups.methods import Method
    from soups.pareto import Floats
    from soups.search.greedy import Ties
    from soups.state import Checkpoint

Models = Annotated[
    list[Path], typer.Argument(help="Folders of transformers or PEFT, or files: .safetensors, .pt, .pth, .bin, .ckpt.")
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="Name of a model, once per model, in order; default: its folder."),
]
MethodName = Annotated[
    str, typer.Option("--method", help="Merge method; soups methods lists them. Or a Python file of your own.")
]
Params = Annotated[
    list[str] | None, typer.Option("--param", help="Parameter of the method, key=value; may be repeated.")
]
Base = Annotated[
    Path | None, typer.Option("--base", help="The common initialisation: for methods that use it, and for adapters.")
]
AdapterBase = Annotated[
    Path | None, typer.Option("--base", help="What adapters are applied to; default: the folder that they name.")
]
Extrapolate = Annotated[
    bool, typer.Option("--extrapolate", help="Permit weights outside [0, 1] or that do not sum to 1.")
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average that a training stored in its file.")]
IntegerPolicy = Annotated[
    str, typer.Option("--integers", help="Integer tensors that differ between models: error, first, max, or from:NAME.")
]
ResultsOut = Annotated[Path, typer.Option("-o", "--out", help="Folder of results; resumed if it is there.")]
EvaluatorName = Annotated[
    str | None, typer.Option("--evaluator", help="module:function, called with the first model and --arg.")
]
Program = Annotated[
    str | None,
    typer.Option("--command", help='A program to score with: "python eval.py {model} --out {result}".'),
]
EvaluatorArgs = Annotated[
    list[str] | None, typer.Option("--arg", help="Argument of the evaluator, key=value; may be repeated.")
]
InitScores = Annotated[
    Path | None,
    typer.Option("--init", help="Scores of the initialisation: a JSON file, or a folder with metrics.json."),
]
Compared = Annotated[
    list[str] | None,
    typer.Option(
        "--compare", help="Another set of models, NAME=PATH of a sweep or of a JSON file with points; repeatable."
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes that score points at the same time.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def is_recipe(models: Sequence[Path]) -> bool:
    """Say whether a recipe file was given in place of models."""
    return len(models) == 1 and models[0].suffix in (".yaml", ".yml")


def open_models(
    paths: Sequence[Path], names: Sequence[str] | None, *, ema: bool = False, base: Path | None = None
) -> list[Checkpoint]:
    """Open the checkpoints in order, each with its name; adapters on top of the base."""
    from soups.merge import check_names
    from soups.state import is_adapter, open_checkpoint

    if names and len(names) != len(paths):
        raise UserError(f"{len(names)} names for {len(paths)} models", where="--name", fix="give one name per model")
    under = open_checkpoint(base) if base is not None and any(is_adapter(path) for path in paths) else None
    checkpoints = [
        open_checkpoint(path, names[i] if names else None, average=ema, adapter_base=under)
        for i, path in enumerate(paths)
    ]
    check_names(checkpoints)
    return checkpoints


def num_bytes(text: str, option: str) -> int:
    """Parse a size, such as 5GB, 500MB or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text.strip().upper())
    if match is None or not (count := int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))):
        raise UserError(f"not a size: {text!r}", where=option, fix="such as 5GB or 500MB")
    return count


def open_base(path: Path | None, method: Method | None = None, models: Sequence[Checkpoint] = ()) -> Checkpoint | None:
    """Open the initialisation, if there is one and it is not only what adapters are applied to."""
    from soups.merge import used_base
    from soups.state import open_checkpoint

    base = open_checkpoint(path) if path is not None else None
    return base if method is None else used_base(base, method, models)


def bound_method(name: str, params: Sequence[str] | None, extrapolate: bool) -> Method:
    """Return the method with its parameters."""
    from soups.methods import get_method

    return get_method(name, key_values("--param", params) | ({"extrapolate": True} if extrapolate else {}))


def evaluator_of(evaluator: str | None, program: str | None, args: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the evaluator: a function, or a program."""
    from soups.evaluators import command

    parsed = key_values("--arg", args)
    if (evaluator is None) == (program is None):
        what = "two evaluators" if evaluator else "no evaluator"
        raise UserError(what, where="--evaluator, --command", fix="give one of them")
    if program is None:
        assert evaluator is not None
        return evaluator, parsed
    command.split_template(program)
    return command.SPEC, {"command": program} | parsed


def tie_rule(ties: str) -> Ties:
    """Check the rule for ties of a greedy soup."""
    if ties == "reject" or ties == "accept":
        return ties
    raise UserError(f"unknown rule for ties: {ties!r}", where="--ties", fix="choices: reject, accept")


def numbers(text: str, option: str = "--weights") -> tuple[float, ...]:
    """Parse numbers between commas."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"not a list of numbers: {text!r}", where=option, fix="such as 0.5,0.5") from None
    if not all(map(isfinite, found)):
        raise UserError(f"not finite: {text!r}", where=option, fix="such as 0.5,0.5")
    return found


def named_numbers(text: str, option: str) -> dict[str, float]:
    """Parse name=number between commas."""
    parsed: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        fix = f"such as {option} CIDEr=0.7,BLEU4=0.3"
        if name.strip() in parsed:
            raise UserError(f"{name.strip()!r} is given twice", where=option, fix=fix)
        try:
            parsed[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not (name.strip() and equals):
            raise UserError(f"not name=number: {part!r}", where=option, fix=fix)
        if not isfinite(parsed[name.strip()]):
            raise UserError(f"not finite: {part!r}", where=option, fix=fix)
    return parsed


def read_series(option: str, items: Sequence[str] | None, metrics: Sequence[str]) -> dict[str, Floats]:
    """Read the scores of other sets of models, NAME=PATH each."""
    from soups.compare import read_scores
    from soups.front import LINE, SOUPS

    series: dict[str, Floats] = {}
    for item in items or []:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise UserError(f"not NAME=PATH: {item!r}", where=option, fix=f"such as {option} morl=runs/morl")
        if name in (*series, SOUPS, LINE):
            raise UserError(f"{name!r} is taken", where=option, fix="give every set of models a name of its own")
        series[name] = read_scores(Path(path), metrics)
    return series


def key_values(option: str, items: Sequence[str] | None) -> dict[str, Any]:
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
