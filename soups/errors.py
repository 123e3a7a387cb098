"""The one error a person can cause: what is wrong, where, and how to fix it."""

import difflib
from collections.abc import Iterable

MAX_LISTED = 12


class UserError(ValueError):
    """Report wrong input; the command line prints it without a traceback and exits with code 2."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


def did_you_mean(name: str, choices: Iterable[str], most: int = MAX_LISTED) -> str:
    """Return the fix for an unknown name: the closest choice if there is one, and at most so many choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1)
    more = f", and {len(known) - most} more" if len(known) > most else ""
    listed = ", ".join(known[:most]) + more or "none"
    return f"did you mean {close[0]!r}? (choices: {listed})" if close else f"choices: {listed}"
