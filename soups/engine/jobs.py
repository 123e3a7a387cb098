"""Run many independent pieces of work on all cores, within a limit of memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """A piece of work, and the bytes of memory that it holds while it runs."""

    run: Callable[[], object]
    num_bytes: int = 0


def num_cores() -> int:
    """Return how many threads to use: all cores that this process may use, unless OMP_NUM_THREADS says otherwise."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(int(limit), 1), available) if limit.isdecimal() else available


def run_jobs(jobs: Iterable[Job], num_threads: int, budget: int | None = None) -> dict[int, object]:
    """Run the jobs, started in their order, each on one thread; numpy and torch release the lock of Python.

    Jobs that use torch must have imported it before: its threads and its gradients are then off in them.

    Args:
        jobs: what to run; a generator is drawn from as threads become free.
        num_threads: how many run at the same time.
        budget: the bytes that jobs that run at the same time may hold together; one job alone may hold more.

    Returns:
        What the jobs returned, by their index, without None.

    Raises:
        BaseException: the first that a job raised; the jobs that were not started then are not.
    """
    if num_threads == 1:
        with without_gradients():
            return {index: value for index, job in enumerate(jobs) if (value := job.run()) is not None}
    queue = _Queue(jobs, budget)

    def work() -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # counts for this thread; the pieces are too small to share among threads
        with without_gradients():
            queue.work()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(num_threads)]
    with _torch_threads_restored():
        _run(threads, queue)
    if queue.error is not None:
        raise queue.error
    return queue.results


def _run(threads: Sequence[threading.Thread], queue: _Queue) -> None:
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # such as an interrupt: let the running jobs finish, start no more
        queue.stop(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def without_gradients() -> AbstractContextManager[Any]:
    """Return a context in which torch, if it was imported, records no graph."""
    torch = sys.modules.get("torch")
    return torch.no_grad() if torch else nullcontext()


@contextmanager
def _torch_threads_restored() -> Iterator[None]:
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(before)  # the default for threads that start later


class _Queue:
    """Hands out jobs to threads as the memory allows; remembers the first error."""

    def __init__(self, jobs: Iterable[Job], budget: int | None) -> None:
        self._jobs = enumerate(jobs)
        self._budget = budget
        self._held = 0
        self._changed = threading.Condition()
        self.results: dict[int, object] = {}
        self.error: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """Start no more jobs."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def work(self) -> None:
        """Run jobs until there are none."""
        try:
            while (taken := self._next()) is not None:
                index, job = taken
                try:
                    value = job.run()
                    if value is not None:
                        self.results[index] = value
                finally:
                    with self._changed:
                        self._held -= job.num_bytes
                        self._changed.notify_all()
        except BaseException as error:  # raised again by the thread that waits
            self.stop(error)

    def _next(self) -> tuple[int, Job] | None:
        with self._changed:
            taken = None if self.error else next(self._jobs, None)
            if taken is None:
                return None
            _, job = taken
            self._changed.wait_for(lambda: self.error is not None or self._fits(job))
            if self.error is not None:
                return None
            self._held += job.num_bytes
            return taken

    def _fits(self, job: Job) -> bool:
        return not self._held or self._budget is None or self._held + job.num_bytes <= self._budget
