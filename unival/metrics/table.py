"""Means with bootstrap intervals as a table: Markdown in a notebook, aligned columns when printed."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unival.metrics.bootstrap import Interval, bootstrap_mean

HEADER = ("", "mean", "95 % interval", "samples")


class IntervalTable:
    """What `intervals` returns: `rows` holds the numbers, `sizes` the samples of each row."""

    def __init__(self, rows: Mapping[str, Interval], sizes: Mapping[str, int]) -> None:
        self.rows, self.sizes = dict(rows), dict(sizes)

    @property
    def means(self) -> NDArray[np.float64]:
        """Return the means of the rows."""
        return np.array([row.mean for row in self.rows.values()])

    @property
    def errors(self) -> NDArray[np.float64]:
        """Return how far the intervals reach below and above the means, (2, rows), as matplotlib's `yerr` wants it."""
        return np.array([[row.mean - row.low, row.high - row.mean] for row in self.rows.values()]).T

    def cells(self) -> list[tuple[str, str, str, str]]:
        """Return the texts of all rows without the header."""
        return [
            (name, f"{row.mean:.3f}", f"{row.low:.3f} to {row.high:.3f}", str(self.sizes[name]))
            for name, row in self.rows.items()
        ]

    def __str__(self) -> str:
        """Return the table with aligned columns."""
        lines = [HEADER, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        )

    def _repr_markdown_(self) -> str:
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in (HEADER, *self.cells())]
        header, *body = ("| " + " | ".join(line) + " |" for line in escaped)
        return "\n".join([header, "| --- | --- | --- | --- |", *body])


def intervals(scores: Mapping[str, ArrayLike]) -> IntervalTable:
    """Return the mean of every row of scores with its 95 % bootstrap interval.

    Args:
        scores: By name, shape (samples,); rows may differ in length. Differences of two systems on the same samples are
            scores too: an interval that excludes 0 is a paired comparison.

    Raises:
        UserError: A row is empty or not finite.
    """
    arrays = {name: np.asarray(values) for name, values in scores.items()}
    rows = {name: bootstrap_mean(values) for name, values in arrays.items()}
    return IntervalTable(rows, {name: values.size for name, values in arrays.items()})
