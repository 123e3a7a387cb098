"""The one error that a person's wrong input raises, and the boundary at which the command line reports it."""

import errno
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import NoReturn

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # writing into an open file does not name it
MAX_LINE_CHARS = 600
MAX_LISTED_CHOICES = 20


class UserError(ValueError):
    """Report wrong input: what is wrong, where (file, key, row), and how to put it right.

    Each part is one line: line breaks become spaces and control characters are escaped, so that a hostile
    file name cannot write to the terminal.
    """

    def __init__(self, what: str, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where, fix)
        self.what = _one_line(what)
        self.where = _one_line(where) if where else None
        self.fix = _one_line(fix) if fix else None

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        fix = f" ({self.fix})" if self.fix else ""
        return f"{self.what}{where}{fix}"

    def lines(self) -> list[str]:
        """Return the one to three lines that the command line prints."""
        parts = [f"error: {self.what}"]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  fix: {self.fix}")
        return parts


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint for an unknown name: the closest valid one when there is one, and the valid choices.

    Example:
        >>> did_you_mean("captoin", ["vqa", "caption"])
        "did you mean 'caption'? valid: caption, vqa"
    """
    names = sorted({str(choice) for choice in choices})
    if not names:
        return "nothing is valid here"
    listed = ", ".join(names[:MAX_LISTED_CHOICES])
    if len(names) > MAX_LISTED_CHOICES:
        listed += f" and {len(names) - MAX_LISTED_CHOICES} more"
    lowered = {choice.lower(): choice for choice in names}
    close = get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    hint = f"did you mean '{lowered[close[0]]}'? " if close else ""
    return f"{hint}valid: {listed}"


def run_cli(app: Callable[..., object], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a typer application and turn a `UserError` into one to three lines on stderr and exit code 2.

    `--debug` is accepted anywhere on the command line (before a bare `--`) and lets the traceback through.
    So does a file that the system refuses: a full disk, a name that is too long, a folder that cannot be written. Any
    other exception is a defect of ours and always shows its traceback.

    Args:
        app: Called as `app(args=[...])`, as a `typer.Typer` is.
        argv: The arguments after the program's name; `sys.argv[1:]` by default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a result that the terminal cannot show is escaped, not lost
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    is_debug = "--debug" in options
    rest = arguments[len(options) :]
    try:
        app(args=[argument for argument in options if argument != "--debug"] + rest)
    except (UserError, OSError) as raised:
        is_ours = not isinstance(raised, UserError) and raised.filename is None and raised.errno not in DISK_ERRORS
        if is_debug or is_ours:
            raise
        error = raised if isinstance(raised, UserError) else refused_file(raised)
        print("\n".join(error.lines()), file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def refused_file(error: OSError) -> UserError:
    """Say in a line which file the system refuses."""
    fix = "check its name, the space on the disk and what you may read and write; --debug shows who wanted it"
    where = None if error.filename is None else str(error.filename)
    return UserError(f"a file cannot be read or written: {error.strerror or error}", where, fix)


def _one_line(text: str) -> str:
    joined = " ".join(str(text).split())
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)
    return visible if len(visible) <= MAX_LINE_CHARS else visible[: MAX_LINE_CHARS - 3] + "..."
