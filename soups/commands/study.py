"""``soups study``: trainings, mixtures, baselines and a report from one file."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from soups.commands import options
from soups.commands.output import reports_errors, show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Train, mix, compare and report as a study file says.",
)


@app.callback()
def study() -> None:
    """Train, mix, compare and report as a study file says."""


@app.command("run")
@reports_errors
def run(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file, such as configs/soups/NAME.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder of the study; default: runs/studies/NAME.")
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Trainings, and then processes that score, at the same time.")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the trainings and which are done.")] = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Do what a study says and write report.html; killed anywhere, the same command finishes it.

    Example: soups study run configs/soups/captioning_rewards.yaml train.values.steps=20 -o runs/small
    """
    from soups.study.config import load_study
    from soups.study.run import JSON_NAME, PAGE_NAME, describe, run_study

    loaded = load_study(study, overrides or [])
    root = out or Path("runs/studies") / study.stem
    if dry_run:
        rows = describe(loaded, root)
        lines = [f"{'done' if row['done'] else 'to do'}  {row['id']}: {shlex.join(row['command'])}" for row in rows]
        show({"out": str(root), "trainings": rows}, lines, as_json)
        return
    content = run_study(loaded, root, lambda line: print(line, file=sys.stderr, flush=True), workers)
    paths = [f"report: {root / PAGE_NAME}", f"data: {root / JSON_NAME}"]
    show(content, [*_lines(content), *paths], as_json)


def _lines(content: dict[str, Any]) -> list[str]:
    lines = []
    for front in content["fronts"]:
        for found in front["hypotheses"].values():
            lines.append(f"{' | '.join(front['of'])}: {found['statement']}: {found['verdict']}")
    for path in content["paths"]:
        lines.append(f"{' | '.join(path['of'])}: barrier {path['numbers']['barrier']['value']:.4g}")
    return lines
