"""``soups learn``: coefficients by gradient descent."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import json_text, show, spell
from soups.errors import UserError

if TYPE_CHECKING:
    from soups.search.learn import Per

MAX_SHOWN = 12  # groups printed


def command(
    models: options.Models,
    loss: Annotated[
        str, typer.Option(help="module:function, called with the first model and --arg; returns an Objective.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON file to write.")],
    name: options.Names = None,
    arg: Annotated[list[str] | None, typer.Option(help="Argument of the function, key=value; repeatable.")] = None,
    per: Annotated[str, typer.Option(help="What has its own coefficients: model, module or tensor.")] = "model",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the batches.")] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.05,
    save: Annotated[Path | None, typer.Option(help="Folder to create with the soup.")] = None,
    integers: options.IntegerPolicy = "error",
    ema: options.Ema = False,
    base: options.AdapterBase = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Learn coefficients that minimise a loss of the merged weights.

    Example: soups learn runs/a runs/b --loss objective:held_out --per module -o runs/learned.json --save runs/soup
    """
    from soups.engine.output import check_free
    from soups.search.learn import learn, load_objective, save_learned
    from soups.state import check_file, write_text

    check_file(out)
    checkpoints = options.open_models(models, name, ema=ema, base=base)
    if save is not None:
        check_free(save)
    with redirect_stdout(sys.stderr):  # what the objective prints; stdout may be JSON
        learned = learn(
            checkpoints,
            load_objective(loss, models[0], options.key_values("--arg", arg)),
            per=_per(per),
            epochs=epochs,
            lr=lr,
            integers=integers,
            spec=loss,
            on_epoch=lambda epoch, value: print(f"epoch {epoch}/{epochs}  loss {value:.6g}", file=sys.stderr),
        )
    data = asdict(learned) | {"saved": None if save is None else str(save)}
    write_text(out, json_text(data) + "\n")
    if save is not None:
        save_learned(checkpoints, learned, integers, save)
    show(data, _lines(data, out), as_json)


def _per(per: str) -> Per:
    if per == "model" or per == "module" or per == "tensor":
        return per
    raise UserError(f"unknown grouping {per!r}", where="--per", fix="choices: model, module, tensor")


def _lines(data: dict[str, Any], out: Path) -> list[str]:
    groups = list(data["coefficients"].items())
    lines = [f"{group:<32}{spell(weights)}" for group, weights in groups[:MAX_SHOWN]]
    if len(groups) > MAX_SHOWN:
        lines.append(f"and {len(groups) - MAX_SHOWN} more")
    lines.append("loss: " + spell(data["losses"]))
    return [*lines, f"wrote {out}", *([f"wrote {data['saved']}"] if data["saved"] else [])]
