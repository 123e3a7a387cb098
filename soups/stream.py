"""From files to files: every tensor of the result computed piece by piece, on all cores, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from soups.engine import Job, num_cores, run_jobs
from soups.output import WeightFiles
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo
from soups.state import Checkpoint, Reader

if TYPE_CHECKING:
    import torch

Read = Callable[[Checkpoint, str], "torch.Tensor"]  # from a checkpoint and a name to the tensor or a piece of it

PIECE_ELEMENTS = 1 << 17  # 0.5 MB in float32: large enough for the disk, small enough for the cache
BUDGET_BYTES = 256 << 20  # whole tensors in work at the same time; a larger one is in work alone
WORK_BYTES = 24  # per entry of a whole tensor: a float64 copy and what methods measure
TORCH_BYTES = 280 << 20  # what Python and torch hold before any work: 268 MB with CUDA 13, about half without
START_SECONDS = 2.0  # Python and torch
DISK_BYTES_PER_SECOND = 600e6  # the cold disk of the machine that the benchmark was written on
SECONDS_PER_ENTRY = 5e-9  # of one model, on one core of it


@dataclass(frozen=True)
class Task:
    """How one tensor of the result is made.

    Attributes:
        name: of the tensor, in the result.
        info: its dtype and shape in the result.
        sources: the checkpoints that it is read from, each with the name there.
        compute: writes the result into its first argument, from what its second reads.
        by_pieces: whether ``compute`` may be given flat pieces, in any order, instead of whole tensors.
    """

    name: str
    info: TensorInfo
    sources: tuple[tuple[Checkpoint, str], ...]
    compute: Callable[[torch.Tensor, Read], None]
    by_pieces: bool

    @property
    def is_cut(self) -> bool:
        """Say whether the tensor is made piece by piece: the method permits it, and parts of all inputs can be read."""
        shapes = {checkpoint.infos[name].shape for checkpoint, name in self.sources}
        plain = all(checkpoint.is_contiguous(name) for checkpoint, name in self.sources)
        return self.by_pieces and plain and shapes == {self.info.shape}

    @property
    def num_bytes(self) -> int:
        """Return the memory that the task holds while it runs, or one of its pieces."""
        entries = min(self.info.num_elements, PIECE_ELEMENTS) if self.is_cut else self.info.num_elements
        inputs = sum(ITEM_BYTES[checkpoint.infos[name].dtype] for checkpoint, name in self.sources)
        return entries * (inputs + ITEM_BYTES[self.info.dtype] + (0 if self.is_cut else WORK_BYTES))

    @property
    def place(self) -> tuple[str, int]:
        """Return where its first input lies: tasks in this order read the disk from front to back."""
        if not self.sources:
            return "", 0
        checkpoint, name = self.sources[0]
        return str(checkpoint.infos[name].path), checkpoint.infos[name].offset


def predicted_memory(tasks: Sequence[Task], num_threads: int) -> int:
    """Return the peak of anonymous memory in bytes that `stream` will need, Python and torch included."""
    largest = max((task.num_bytes for task in tasks), default=0)
    return TORCH_BYTES + max(min(largest * num_threads, BUDGET_BYTES), largest)


def predicted_seconds(num_bytes: int, num_entries: int, num_threads: int) -> float:
    """Return about how long a merge takes that reads and writes so many bytes and sums up so many entries."""
    return START_SECONDS + max(num_bytes / DISK_BYTES_PER_SECOND, num_entries * SECONDS_PER_ENTRY / num_threads)


def stream(tasks: Sequence[Task], readers: Mapping[Checkpoint, Reader], files: WeightFiles) -> None:
    """Compute every task and write the result at its place.

    Args:
        tasks: one per tensor of the result.
        readers: the open files of every checkpoint that a task reads.
        files: where the result goes.
    """
    run_jobs(_jobs(sorted(tasks, key=lambda task: task.place), readers, files), num_cores(), BUDGET_BYTES)


def _jobs(tasks: Sequence[Task], readers: Mapping[Checkpoint, Reader], files: WeightFiles) -> Iterator[Job]:
    for task in tasks:
        step = PIECE_ELEMENTS if task.is_cut else max(task.info.num_elements, 1)
        for start in range(0, max(task.info.num_elements, 1), step):
            yield Job(_bound(task, start, min(start + step, task.info.num_elements), readers, files), task.num_bytes)


def _bound(
    task: Task, start: int, stop: int, readers: Mapping[Checkpoint, Reader], files: WeightFiles
) -> Callable[[], None]:
    def run() -> None:
        import torch

        shape = (stop - start,) if task.is_cut else task.info.shape
        slots = count()

        def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
            if not task.is_cut:
                return readers[checkpoint](name)
            num_bytes = (stop - start) * ITEM_BYTES[checkpoint.infos[name].dtype]
            return readers[checkpoint].piece(name, start, stop, _memory(next(slots), num_bytes))

        out = torch.empty(shape, dtype=getattr(torch, DTYPES[task.info.dtype][0]))
        task.compute(out, read)
        files.write(task.name, start * ITEM_BYTES[task.info.dtype], out.view(-1).view(torch.uint8).numpy().data)

    return run


_kept = threading.local()


def _memory(slot: int, num_bytes: int) -> torch.Tensor:
    """Return bytes that the next piece of this thread will use again: fresh memory costs a page fault every 4 kB."""
    import torch

    kept: dict[Any, torch.Tensor] = _kept.__dict__
    if slot not in kept or kept[slot].numel() < num_bytes:
        kept[slot] = torch.empty(num_bytes, dtype=torch.uint8)
    return kept[slot]
