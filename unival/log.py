"""Progress on stderr, numbers in `metrics.jsonl`."""

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from unival.atomic import append, replacing
from unival.errors import UserError

console = Console(stderr=True, force_jupyter=False)  # a plain line, not a widget, in notebooks


def progress(is_shown: bool = True) -> Progress:
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
        disable=not is_shown,
    )


def track(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Iterate with a progress bar."""
    with progress() as bar:
        row = bar.add_task(description, total=total, status="")
        for item in items:
            yield item
            bar.advance(row)


class MetricsLog:
    """Append-only JSON lines, flushed at every row; rows after a resumed step are dropped when it is opened.

    Args:
        path: The file.
        from_step: Rows of this step and later ones are dropped.
        tensorboard: Write TensorBoard's files to the folder `tensorboard` beside it, too.
        is_active: False for the other processes of a run, which write nothing.

    Raises:
        UserError: If TensorBoard is not installed.
    """

    def __init__(self, path: Path, from_step: int = 0, tensorboard: bool = False, is_active: bool = True) -> None:
        self.path, self.is_active, self.board = path, is_active, None
        if not is_active:
            return
        cut_back(path, from_step)
        if tensorboard:
            self.board = open_board(path.parent / "tensorboard", from_step)

    def write(self, step: int, **numbers: Any) -> None:
        """Append one row; a number that is not finite is null there, as JSON has none."""
        if not self.is_active:
            return
        row = {name: None if isinstance(n, float) and not math.isfinite(n) else n for name, n in numbers.items()}
        append(self.path, json.dumps({"step": step, **row}, allow_nan=False) + "\n")
        if self.board is not None:
            for name, number in numbers.items():
                if isinstance(number, int | float):
                    self.board.add_scalar(name, number, step)
            self.board.flush()


def cut_back(path: Path, from_step: int) -> None:
    """Drop the rows of a step and later ones from a file of JSON lines; without a file, make an empty one."""
    rows = []
    if path.exists():
        for line in path.read_bytes().split(b"\n"):
            try:
                text = line.decode("utf-8")
                is_kept = json.loads(text)["step"] < from_step
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # the line that a killed run was writing, or what a disk made of one
            if is_kept:
                rows.append(text)
    with replacing(path) as file:  # a kill leaves the old rows or the new ones
        file.writelines(row + "\n" for row in rows)


def open_board(folder: Path, from_step: int) -> Any:
    """Return TensorBoard's writer; what it showed of later steps is hidden.

    Raises:
        UserError: If it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise no_tensorboard() from None
    return SummaryWriter(str(folder), purge_step=from_step)


def no_tensorboard() -> UserError:
    """Return the error of a run that asks for TensorBoard where it is not installed."""
    return UserError("TensorBoard is not installed", fix="pip install 'unival[logging]', or leave `tensorboard` out")


class Means:
    """Means of numbers by name, over everything that was added since the last `take`."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        """Count one value of each."""
        self.merge({name: (number, 1) for name, number in numbers.items()})

    def merge(self, sums: Mapping[str, tuple[float, int]]) -> None:
        """Add sums and counts, as of another process."""
        for name, (total, count) in sums.items():
            old_total, old_count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (old_total + total, old_count + count)

    def take(self, gather: Callable[[Any], Sequence[Any]] = lambda sums: [sums]) -> dict[str, float]:
        """Return the means over all processes that `gather` asks, and begin anew."""
        together = Means()
        for sums in gather(self.sums):
            together.merge(sums)
        self.sums = {}
        return {name: total / count for name, (total, count) in together.sums.items()}


class Meter:
    """How fast a run goes and what it takes, between two rows of the log."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.start, self.waited, self.examples = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of a block as waiting for data."""
        begin = time.monotonic()
        yield
        self.waited += time.monotonic() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out: it is none of training."""
        begin = time.monotonic()
        yield
        self.start += time.monotonic() - begin

    def take(self, num_processes: int) -> dict[str, float]:
        """Return examples per second of all processes, the share of time spent waiting for data, and the peak memory.

        Memory is that of the GPU if one is used, otherwise of this process, in GB.
        """
        seconds = max(time.monotonic() - self.start, 1e-9)
        numbers = {
            "samples_per_second": round(self.examples * num_processes / seconds, 2),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": round(peak_memory() / 1e9, 3),
        }
        self.reset()
        return numbers


def peak_memory() -> int:
    """Return the most bytes that were in use so far: on the GPU if there is one in use, otherwise by this process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return peak_resident()


def peak_resident() -> int:
    """Return the most bytes that this process had in main memory.

    On Linux the kernel's page about it, because there `getrusage` counts the process that started this one: a program
    begins with the maximum of the one whose place it takes.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes
