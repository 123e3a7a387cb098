"""What all trainers share: one YAML file and overrides, an output that is whole or not there, short messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from soups.engine.output import check_free, new_folder
from soups.study.config import load_settings
from soups.study.schema import Section

SETTINGS_NAME = "settings.json"


class TrainerSettings(Section):
    """Base of the settings of all trainers."""

    out: str
    """Folder to write."""
    seed: int = 1
    steps: int = Field(default=50, gt=0)


Settings = TypeVar("Settings", bound=TrainerSettings)


@contextmanager
def output(settings: TrainerSettings) -> Iterator[Path]:
    """Yield a folder to fill; it becomes `out`, with the settings inside, when everything is written."""
    with new_folder(Path(settings.out)) as folder:
        yield folder
        (folder / SETTINGS_NAME).write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")


def is_done(settings: TrainerSettings) -> bool:
    """Say whether `out` holds the result of these settings already: a study may ask again after it was killed.

    Raises:
        UserError: it holds something else.
    """
    path = Path(settings.out, SETTINGS_NAME)
    if path.is_file() and path.read_text(encoding="utf-8") == settings.model_dump_json(indent=1) + "\n":
        return True
    check_free(Path(settings.out))
    return False


def run(schema: type[Settings], train: Callable[[Settings, Callable[[str], None]], None], fix: str) -> None:
    """Read `CONFIG.yaml key.sub=value ...` from the command line and train; progress goes to stdout.

    Args:
        schema: of the settings.
        train: is called with the settings and with what prints a line.
        fix: where the keys are explained.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m soups.trainers.NAME CONFIG.yaml key.sub=value ...\n{fix}")
        raise SystemExit(0 if words else 2)
    try:
        settings = load_settings(Path(words[0]), words[1:], schema, fix)
        if is_done(settings):
            print(f"done before: {settings.out}")
        else:
            train(settings, lambda line: print(line, flush=True))
    except ValueError as error:
        if not hasattr(error, "fix"):  # rewards have error classes of their own; one that says a fix is a person's too
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
