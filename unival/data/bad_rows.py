"""Rows whose medium cannot be decoded: each is named and replaced, and too many of them end the run."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from unival.data.workers import watched
from unival.errors import UserError

MAX_SHARE = 0.01
MIN_BAD_ROWS = 10


class BadRow(UserError):
    """Say that the medium of one row cannot be decoded; `row` is where it stands."""

    row: str = ""

    @classmethod
    def of(cls, error: UserError, row: str) -> "BadRow":
        """Name the row in an error about its medium."""
        place = error.where or ""
        bad = cls(error.what, place if place.startswith(row) else f"{row}: {place}" if place else row, error.fix)
        bad.row = row
        return bad


@contextmanager
def decoding(row: str) -> Iterator[None]:
    """Guard the decoding of one row: an error names it, and a worker that hangs here is replaced.

    Args:
        row: Where it stands; empty: errors stay as they are.

    Raises:
        BadRow: In place of the decoder's `UserError`.
    """
    with watched(row):
        try:
            yield
        except BadRow:
            raise
        except UserError as error:
            if not row:
                raise
            raise BadRow.of(error, row) from None


class BadRows:
    """Counts bad rows of a run and says so on stderr, once for each.

    Args:
        max_share: The run ends when more than this share of the rows seen was bad, and at least `min_bad`.
        min_bad: Fewer never end it, so that two bad ones of the first hundred do not.
    """

    def __init__(self, max_share: float = MAX_SHARE, min_bad: int = MIN_BAD_ROWS) -> None:
        self.max_share, self.min_bad = max_share, min_bad
        self.num_seen = self.num_bad = 0
        self.found: dict[str, str] = {}

    def lose(self, row: str, what: str) -> None:
        """Count a bad row."""
        self.num_bad += 1
        if row not in self.found:
            self.found[row] = what
            print(f"left out: {UserError(what, where=row)}", file=sys.stderr)

    def see(self, num_rows: int, lost: Iterable[tuple[str, str]] = ()) -> None:
        """Count the rows of a batch, and those of them that were bad.

        Raises:
            UserError: There are too many by now.
        """
        self.num_seen += num_rows
        for row, what in lost:
            self.lose(row, what)
        if self.num_bad >= self.min_bad and self.num_bad > self.max_share * self.num_seen:
            first = "; ".join(f"{row}: {what}" for row, what in list(self.found.items())[:2])
            what = f"{self.num_bad} of {self.num_seen} rows cannot be read, more than {self.max_share:.1%}: {first}"
            raise UserError(what, fix="look at all of them with `unival data check`")
