"""What the commands print: results on stdout, progress on stderr, people's mistakes in a few lines."""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from math import isfinite
from typing import Any

import typer

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # writing into an open file does not name it

STDOUT, STDERR = 1, 2
NOISE = ExitStack()  # holds stdout free for a result in JSON, until that is shown
RESUMED = ("sweep", "study", "pick", "greedy")  # commands that keep what they have scored


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Print what a person did wrong in a few lines and exit with code 2; 130 when interrupted."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            with NOISE:
                if kwargs.get("as_json"):
                    NOISE.enter_context(_stdout_is_stderr())
                command(*args, **kwargs)
        except ValueError as error:
            # Evaluators have error classes of their own; one that says what, where and fix is a person's too.
            if not hasattr(error, "fix"):
                raise
            if kwargs.get("debug"):
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except OSError as error:
            # A path that is a folder, a file, full or forbidden; others are defects and show where they are.
            if kwargs.get("debug") or (error.filename is None and error.errno not in DISK_ERRORS):
                raise
            where = "" if error.filename is None else f"\n  where: {error.filename}"
            fix = "check the path, its permissions and the disk"
            print(f"error: {error.strerror}{where}\n  fix: {fix}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            keeps = command.__module__.rpartition(".")[2] in RESUMED
            again = "continues where it stopped" if keeps else "starts again"
            print(f"interrupted; the same command {again}", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


@contextmanager
def _stdout_is_stderr() -> Iterator[None]:
    """Send what evaluators, their libraries and the programs that they start print to stderr."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started us
        yield
        return
    original = sys.stdout
    original.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        original.flush()  # what those wrote who kept it, and C libraries
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, STDOUT)
        os.close(kept)


def show(data: Mapping[str, Any], lines: Sequence[str], as_json: bool) -> None:
    """Print the result on stdout: the data as JSON, or the lines."""
    NOISE.close()
    print(json_text(data) if as_json else "\n".join(lines))


def json_text(data: Mapping[str, Any]) -> str:
    """Return a result as JSON, which has no word for NaNs and infinities: they are null."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def spell(values: Mapping[str, float]) -> str:
    """Return named numbers as text."""
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items())


@contextmanager
def progress(num_points: int, title: str = "sweep") -> Iterator[Callable[[Any, bool], None]]:
    """Yield what a sweep calls for each result: a bar on a terminal, one line per point in a log file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        count = itertools.count(1)
        yield lambda result, is_new: print(f"{next(count)}/{num_points}  {spell(result.metrics)}", file=sys.stderr)
        return
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    last = TextColumn("{task.fields[last]}", markup=False)
    with Progress(*columns, last, console=console, transient=True) as bar:
        task = bar.add_task(title, total=num_points, last="")
        yield lambda result, is_new: bar.update(task, advance=1, last=spell(result.metrics))
