"""Score with another program: ``python eval.py {model} --out {result}``, once per mixture.

The program finds the mixture in the folder ``{model}`` and writes JSON to the file ``{result}``::

    {"accuracy": [1, 0, 1], "brevity": [0.2, 0.4, 0.1]}

or ``{"scores": {...}, "samples": [{"prompt": ..., "output": ...}]}`` to add examples. A number in place of a
list is a score of one sample; intervals then have no width.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from soups.engine import guard
from soups.errors import UserError

SPEC = "soups.evaluators.command:evaluator"
STDERR = 2
LAST_LINES = 8  # of the program's error output, shown when it fails


class CommandEvaluator:
    """Runs the program without a shell: no variables, pipes or globs, unless the program is ``sh -c '...'``."""

    def __init__(self, command: str, timeout: float | None = None) -> None:
        self._words = split_template(command)
        self._timeout = timeout
        self._samples: list[Mapping[str, str]] = []

    def evaluate_checkpoint(self, path: Path) -> Mapping[str, Sequence[float]]:
        """Run the program on the checkpoint at ``path`` and read its result."""
        with TemporaryDirectory(prefix="soups-") as folder:
            result = Path(folder) / "result.json"
            words = [word.replace("{model}", str(path)).replace("{result}", str(result)) for word in self._words]
            _run(words, self._timeout)
            scores, self._samples = _read(result, words)
        return scores

    def samples(self) -> list[Mapping[str, str]]:
        """Return the examples of the last result."""
        return self._samples


def evaluator(checkpoint_path: Path, command: str, timeout: float | None = None) -> CommandEvaluator:
    """Return the evaluator of a command.

    Args:
        checkpoint_path: the first checkpoint, unused.
        command: the template, with ``{model}`` and ``{result}``.
        timeout: seconds after which a run is stopped and the sweep ends with an error.
    """
    return CommandEvaluator(command, timeout)


def split_template(command: str) -> list[str]:
    """Split a template into words.

    Raises:
        UserError: a quote is not closed, or a place is missing.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"not a command: {command!r} ({error})", where="--command", fix="close the quote") from error
    missing = [place for place in ("{model}", "{result}") if not any(place in word for word in words)]
    if missing:
        raise UserError(
            f"the command has no {' and no '.join(missing)}",
            where="--command",
            fix='such as --command "python eval.py {model} --out {result}"',
        )
    return words


def _run(words: Sequence[str], timeout: float | None) -> None:
    if shutil.which(words[0]) is None:
        raise UserError(f"cannot run {words[0]!r}: no such program", where="--command", fix="check it")
    code, said = _guarded(words, timeout)
    if code != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        shown = "".join(f"\n    {line}" for line in lines[-LAST_LINES:])
        raise UserError(
            f"the command ended with exit code {code}:{shown}",
            where=shlex.join(words),
            fix="run it by hand on one of the models; finished points are kept",
        )


def _guarded(words: Sequence[str], timeout: float | None) -> tuple[int, bytes]:
    """Return the exit code and the error output; whatever ends the wait ends all that the program started."""
    theirs, ours = os.pipe()
    try:
        # Its own output goes to our error stream: our standard output is the result, possibly JSON.
        # Read as bytes: one that is no text must not end the sweep.
        with subprocess.Popen(
            [sys.executable, guard.__file__, *words], stdin=theirs, stdout=STDERR, stderr=subprocess.PIPE
        ) as child:
            os.close(theirs)
            try:
                said = child.communicate(timeout=timeout)[1]
            finally:
                os.close(ours)  # the guard then ends the program, if it has not ended
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"the command did not end within {timeout:g} s", where=shlex.join(words), fix="raise --arg timeout=SECONDS"
        ) from error
    return child.returncode, said


def _read(path: Path, words: Sequence[str]) -> tuple[dict[str, list[float]], list[Mapping[str, str]]]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        scores = content.get("scores", content)
        table = {str(metric): value if isinstance(value, list) else [value] for metric, value in scores.items()}
        return table, list(content.get("samples", [])) if "scores" in content else []
    except OSError as error:
        raise UserError("the command wrote no {result}", where=shlex.join(words), fix="write the file") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{{result}} is not a table of scores: {error}",
            where=shlex.join(words),
            fix='write JSON such as {"accuracy": [1, 0, 1]}',
        ) from error
