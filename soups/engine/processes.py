"""Run pieces of work in copies of this process.

Threads that call numpy for 20 microseconds at a time wait for each other's interpreter lock: two of them are slower
than one. Copies made by fork share nothing but the open files, which is all that pieces of a merge need.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe

from soups.engine.jobs import Job, without_gradients
from soups.errors import UserError

INDEX_BYTES = 8


def can_fork() -> bool:
    """Say whether copies of this process may work for it: it has no threads, and nothing of torch was used."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def run_forked(
    jobs: Sequence[Job], num_processes: int, budget: int, meanwhile: Callable[[], object]
) -> dict[int, object]:
    """Run the jobs in copies of this process, started in their order; what they change in memory is lost.

    Args:
        jobs: what to run. Those that need more than their part of the budget run at the end, one after the other.
        num_processes: how many run at the same time.
        budget: the bytes that jobs that run at the same time may hold together; one job alone may hold more.
        meanwhile: called here while they run.

    Returns:
        What the jobs returned, by their index, without None.

    Raises:
        BaseException: the first that a job or ``meanwhile`` raised; the jobs that were not started then are not.
    """
    small = [index for index, job in enumerate(jobs) if job.num_bytes * num_processes <= budget]
    # The copies share the position in this file: to read from it is to take the next job.
    queue = os.memfd_create("jobs")
    workers: list[_Worker] = []
    try:
        os.write(queue, b"".join(index.to_bytes(INDEX_BYTES, "little") for index in small))
        os.lseek(queue, 0, os.SEEK_SET)
        for _ in range(min(num_processes, len(small))):
            workers.append(_Worker(jobs, queue))
        meanwhile()
        for worker in workers:
            worker.wait()
    finally:
        os.lseek(queue, 0, os.SEEK_END)  # after an error or an interrupt: no job is started any more
        for worker in workers:
            worker.wait()
        os.close(queue)
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    results = {index: value for worker in workers for index, value in worker.results.items()}
    with without_gradients():
        for index in sorted(set(range(len(jobs))) - set(small)):
            results[index] = jobs[index].run()
    return {index: value for index, value in results.items() if value is not None}


class _Worker:
    """A copy of this process that runs jobs until there are none, and sends back what they return, or its error."""

    def __init__(self, jobs: Sequence[Job], queue: int) -> None:
        parent = os.getpid()
        self.results: dict[int, object] = {}
        self.error: BaseException | None = None
        self._answer, send = Pipe(duplex=False)
        self._pid = os.fork()
        if self._pid:
            send.close()
            return
        status = 1
        try:  # here runs the copy
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops us
            self._work(jobs, queue, parent)
            send.send((self.results, self.error))
            status = 0
        finally:
            os._exit(status)

    def _work(self, jobs: Sequence[Job], queue: int, parent: int) -> None:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)
        try:
            with without_gradients():
                while os.getppid() == parent and (taken := os.read(queue, INDEX_BYTES)):
                    index = int.from_bytes(taken, "little")
                    value = jobs[index].run()
                    if value is not None:
                        self.results[index] = value
        except BaseException as error:
            os.lseek(queue, 0, os.SEEK_END)
            if not hasattr(error, "fix"):  # a traceback does not cross to the parent
                error.add_note(traceback.format_exc())
            self.error = error

    def wait(self) -> None:
        """Wait for the end, once."""
        if not self._pid:
            return
        with self._answer, suppress(EOFError):  # a copy that ends without an answer says why by its exit code
            self.results, self.error = self._answer.recv()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if status:
            self.error = _lost(os.waitstatus_to_exitcode(status))


def _lost(code: int) -> Exception:
    if code >= 0:
        return RuntimeError(f"a process that merges ended with code {code} and without an error")
    what = f"a process that merges was killed by signal {-code}"
    fix = "if there was not enough memory: OMP_NUM_THREADS=1 merges in one process"
    return UserError(what, fix=fix)
