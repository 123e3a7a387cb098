"""Progress on stderr, numbers in `metrics.jsonl`."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


def progress() -> Progress:
    """Return the progress display used by every long command."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
        transient=False,
        refresh_per_second=2,
    )


def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Iterate with a progress bar."""
    with progress() as bar:
        row = bar.add_task(description, total=total, status="")
        for item in items:
            yield item
            bar.advance(row)


class MetricsLog:
    """Append-only JSON lines, flushed at every row; rows after a resumed step are dropped when it is opened."""

    def __init__(self, path: Path, from_step: int = 0) -> None:
        self.path = path
        rows = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the line that a killed run was writing
                if row["step"] < from_step:
                    rows.append(line)
        path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        self.start = time.monotonic()

    def write(self, step: int, **numbers: Any) -> None:
        """Append one row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
