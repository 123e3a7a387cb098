"""Options that several commands share."""

from typing import Annotated, Literal

import typer

DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="auto: a GPU if any.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
