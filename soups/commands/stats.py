"""``soups stats``: what Fisher and RegMean merging need to know of a model."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soups.commands import options
from soups.commands.output import show
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.statistics import Kind


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The checkpoint to measure.")],
    kind: Annotated[str, typer.Option(help="fisher: diagonal of the Fisher information; gram: of inputs of layers.")],
    loss: Annotated[str, typer.Option(help="module:function, called with MODEL and --arg; returns an Objective.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to create.")],
    arg: Annotated[list[str] | None, typer.Option(help="Argument of the function, key=value; repeatable.")] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="The first batches only; default: all.")] = None,
    ema: options.Ema = False,
    base: options.AdapterBase = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Measure a model on its data, for the methods fisher and regmean.

    Example: soups stats runs/vqa --kind fisher --loss objective:held_out -o runs/vqa_fisher
    """
    from soups.engine.output import check_free
    from soups.search.learn import load_objective
    from soups.statistics import load_weights, measure, save

    chosen = _kind(kind)
    (checkpoint,) = options.open_models([model], None, ema=ema, base=base)
    check_free(out)
    with redirect_stdout(sys.stderr):  # what the objective prints; stdout may be JSON
        objective = load_objective(loss, model, options.key_values("--arg", arg))
        load_weights(checkpoint, objective.model, loss)
        found = measure(objective, chosen, loss, batches)
    num_tensors = save(found, checkpoint, chosen, out)
    data = {"kind": chosen, "num_tensors": num_tensors, "out": str(out)}
    show(data, [f"{chosen} of {num_tensors} tensors", f"wrote {out}"], as_json)


def _kind(kind: str) -> Kind:
    if kind == "fisher" or kind == "gram":
        return kind
    raise UserError(f"unknown statistic {kind!r}", where="--kind", fix="choices: fisher, gram")
