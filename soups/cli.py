"""The command line: one command per file of ``soups/commands``.

Nothing heavy is imported here: each command imports what it needs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from soups.commands import study
from soups.commands.output import reports_errors

COMMANDS = (
    "merge",
    "sweep",
    "front",
    "pick",
    "greedy",
    "learn",
    "stats",
    "diff",
    "plot",
    "methods",
)  # in the order of --help

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Mix the weights of models fine-tuned from one initialisation; draw what the mixtures trade off.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        print(f"soups {version('unival')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


for _name in COMMANDS:
    app.command(_name)(reports_errors(importlib.import_module(f"soups.commands.{_name}").command))
app.add_typer(study.app, name="study")


def main() -> None:
    """Run the command line."""
    app(prog_name="soups")
