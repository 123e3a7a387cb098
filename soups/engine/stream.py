"""From files to files: every tensor of the result computed piece by piece, on all cores, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, TypeVar, cast

from soups.engine.jobs import Job, num_cores, run_jobs
from soups.engine.output import WeightFiles
from soups.engine.processes import run_forked
from soups.sources.info import DTYPES, ITEM_BYTES, TensorInfo
from soups.state import Checkpoint, Reader

if TYPE_CHECKING:
    import torch

    from soups.engine.arrays import Raw

Found = TypeVar("Found")
Read = Callable[[Checkpoint, str], "torch.Tensor"]  # from a checkpoint and a name to the tensor or a piece of it
Made = tuple[memoryview, int, Mapping[str, int]]  # bytes; entries that are not finite; those of the models, by name

PIECE_ELEMENTS = 1 << 18  # 1 MB in float32: large enough for the disk, small enough for the cache
JOB_PIECES = 4  # pieces that are handed out together
BUDGET_BYTES = 256 << 20  # whole tensors in work at the same time; a larger one is in work alone
WORK_BYTES = 24  # per entry of a whole tensor: a float64 copy and what methods measure
PYTHON_BYTES = 40 << 20  # what Python and numpy hold before any work
TORCH_BYTES = 280 << 20  # the same with torch: 268 MB with CUDA 13, about half without
START_SECONDS = 0.5  # Python and numpy
TORCH_SECONDS = 2.0  # the same with torch
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
        raw: does without torch what ``compute`` does, if that is possible: writes into its first argument from the
            entries of the sources, in their order.
    """

    name: str
    info: TensorInfo
    sources: tuple[tuple[Checkpoint, str], ...]
    compute: Callable[[torch.Tensor, Read], None]
    by_pieces: bool
    raw: Callable[[Raw, Sequence[Raw]], None] | None = None

    @property
    def needs_torch(self) -> bool:
        """Say whether numpy does not suffice: for some methods, for whole tensors, and for adapters."""
        return self.raw is None or not self.is_cut

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


@dataclass(frozen=True)
class NotFinite:
    """Infinities and NaNs in a result: a model that diverged, or a dtype that cannot hold what was added up.

    Attributes:
        overflows: by tensor, the number of entries that were made of finite ones.
        before: by model and tensor, the number of entries that it has already, and that went into the result.
    """

    overflows: dict[str, int]
    before: dict[str, dict[str, int]]

    def add(self, other: NotFinite) -> None:
        """Count further entries."""
        for counts, more in (
            (self.overflows, other.overflows),
            *((self.before.setdefault(model, {}), more) for model, more in other.before.items()),
        ):
            for name, num in more.items():
                counts[name] = counts.get(name, 0) + num


def predicted_memory(tasks: Sequence[Task], num_threads: int, *, forks: bool = False) -> int:
    """Return the peak of anonymous memory in bytes that `stream` will need, Python and torch included."""
    largest = max((task.num_bytes for task in tasks), default=0)
    start = TORCH_BYTES if any(task.needs_torch for task in tasks) else PYTHON_BYTES
    copies = num_threads if forks and num_threads > 1 else 0  # they count what they share with this process too
    return start * (1 + copies) + max(min(largest * num_threads, BUDGET_BYTES), largest)


def predicted_seconds(tasks: Sequence[Task], num_bytes: int, num_threads: int) -> float:
    """Return about how long a merge takes that reads and writes so many bytes."""
    num_entries = sum(task.info.num_elements * len(task.sources) for task in tasks)
    start = TORCH_SECONDS if any(task.needs_torch for task in tasks) else START_SECONDS
    return start + max(num_bytes / DISK_BYTES_PER_SECOND, num_entries * SECONDS_PER_ENTRY / num_threads)


def stream(
    tasks: Sequence[Task],
    readers: Mapping[Checkpoint, Reader],
    files: WeightFiles,
    *,
    forks: bool = False,
    further: Sequence[Callable[[], Found]] = (),
) -> tuple[list[Found], NotFinite]:
    """Compute every task and write the result at its place.

    Args:
        tasks: one per tensor of the result.
        readers: the open files of every checkpoint that a task reads.
        files: where the result goes.
        forks: work in copies of this process; see `soups.engine.processes.can_fork`.
        further: work for the same threads or processes; it is started first.

    Returns:
        What the further work returned; and the entries of the result that are not finite.
    """
    import soups.engine.arrays  # noqa: F401 - numpy, before the jobs start

    if any(task.needs_torch for task in tasks):
        import torch  # noqa: F401
    jobs = chain(map(Job, further), _jobs(sorted(tasks, key=lambda task: task.place), readers, files))
    if forks and num_cores() > 1:
        known = run_forked(list(jobs), num_cores(), BUDGET_BYTES, files.start_syncing)
    else:
        files.start_syncing()
        known = run_jobs(jobs, num_cores(), BUDGET_BYTES)
    found = NotFinite({}, {})
    for index in sorted(known):
        if index >= len(further):
            found.add(cast(NotFinite, known[index]))
    return [cast(Found, known[index]) for index in range(len(further))], found


def _jobs(tasks: Sequence[Task], readers: Mapping[Checkpoint, Reader], files: WeightFiles) -> Iterator[Job]:
    for task in tasks:
        size = task.info.num_elements
        step = PIECE_ELEMENTS * JOB_PIECES if task.is_cut else max(size, 1)
        for start in range(0, max(size, 1), step):
            yield Job(partial(_run, task, start, min(start + step, size), readers, files), task.num_bytes)


def _run(
    task: Task, start: int, stop: int, readers: Mapping[Checkpoint, Reader], files: WeightFiles
) -> NotFinite | None:
    """Make some entries of a tensor, piece by piece; return which are not finite, if any are."""
    step = PIECE_ELEMENTS if task.is_cut else max(stop - start, 1)
    make = _with_torch if task.needs_torch else _with_arrays
    found = NotFinite({}, {})
    for first in range(start, max(stop, start + 1), step):
        data, num_wrong, num_before = make(task, first, min(first + step, stop), readers)
        files.write(task.name, first * ITEM_BYTES[task.info.dtype], data)
        if any(num_before.values()):
            found.add(NotFinite({}, {model: {task.name: num} for model, num in num_before.items() if num}))
        elif num_wrong:
            found.add(NotFinite({task.name: num_wrong}, {}))
    return found if found.overflows or found.before else None


def _with_arrays(task: Task, start: int, stop: int, readers: Mapping[Checkpoint, Reader]) -> Made:
    from soups.engine.arrays import Raw, num_not_finite, reused

    def entries(slot: int, dtype: str) -> Raw:
        return Raw(reused(("piece", slot), (stop - start) * ITEM_BYTES[dtype]), dtype, ITEM_BYTES[dtype])

    inputs = []
    for slot, (checkpoint, name) in enumerate(task.sources):
        inputs.append(entries(slot, checkpoint.infos[name].dtype))
        readers[checkpoint].fill(name, start, inputs[-1].data.data)
    out = entries(len(inputs), task.info.dtype)
    assert task.raw is not None
    task.raw(out, inputs)
    num_wrong = num_not_finite(out.data, out.dtype) if task.info.is_float else 0
    num_before: dict[str, int] = {}
    if num_wrong:
        named = zip((checkpoint.name for checkpoint, _ in task.sources), inputs, strict=True)
        num_before = {name: num_not_finite(part.data, part.dtype) for name, part in named}
    return out.data.data, num_wrong, num_before


def _with_torch(task: Task, start: int, stop: int, readers: Mapping[Checkpoint, Reader]) -> Made:
    import torch

    from soups.engine.arrays import reused

    slots = count()
    inputs: dict[str, torch.Tensor] = {}

    def read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        inputs[checkpoint.name] = entries(checkpoint, name)
        return inputs[checkpoint.name]

    def entries(checkpoint: Checkpoint, name: str) -> torch.Tensor:
        if not task.is_cut:
            return readers[checkpoint](name)
        memory = reused(("piece", next(slots)), (stop - start) * ITEM_BYTES[checkpoint.infos[name].dtype])
        return readers[checkpoint].piece(name, start, stop, torch.from_numpy(memory))

    shape = (stop - start,) if task.is_cut else task.info.shape
    out = torch.empty(shape, dtype=getattr(torch, DTYPES[task.info.dtype][0]))
    task.compute(out, read)
    num_wrong = _num_not_finite(out) if task.info.is_float else 0
    num_before = {name: _num_not_finite(tensor) for name, tensor in inputs.items()} if num_wrong else {}
    return out.view(-1).view(torch.uint8).numpy().data, num_wrong, num_before


def _num_not_finite(tensor: torch.Tensor) -> int:
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch cannot ask float8
    return int((~values.isfinite()).sum())
