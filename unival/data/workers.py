"""Processes that prepare data, each of which can be killed: a decoder that hangs or crashes costs one row, not the run.

`torch.utils.data.DataLoader` ends the run when a worker dies or is late. Here the worker says which row it is about to
decode; when that takes too long, or kills it, the row is struck off, the worker replaced, and its work done again.
"""

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any, Generic, TypeVar

from unival.data.buffers import Buffers, Filling
from unival.errors import UserError
from unival.memory import keep_freed_memory

T = TypeVar("T")
Work = Callable[[int, frozenset[str]], T]
NAME_BYTES = 1024
# A worker that answers nothing for so many times the limit of one row hangs elsewhere.
SILENCE = 10
MAX_UNEXPLAINED_DEATHS = 3

_slot: Any = None  # of this process, if it is a worker: the row it is busy with, and since when


@contextmanager
def watched(name: str) -> Iterator[None]:
    """Tell the main process that this worker is busy with one row, until the block ends; elsewhere do nothing."""
    if _slot is None:
        yield
        return
    _slot.name = name.encode(errors="replace")[: NAME_BYTES - 1]
    _slot.queued = queued_seconds(os.getpid())
    _slot.since = time.monotonic()
    try:
        yield
    finally:
        _slot.since = 0.0


def queued_seconds(process: int) -> float:
    """Return how long a process was ready to run and had no processor: on a busy machine nobody hangs who waits."""
    try:
        return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass
class _Worker:
    process: Any
    connection: Any
    slot: Any
    heard: float = field(default_factory=time.monotonic)
    """When it last answered, or got something to do after a rest."""
    keys: deque[tuple[int, int | None]] = field(default_factory=deque)
    """Handed to it and not answered yet, in order, each with the number of the buffer for its answer."""


class Workers(Generic[T]):
    """Results of `work(key, struck)` in the order of the keys.

    Args:
        work: Runs in a forked process; `struck` are the names of the rows (`watched`) it must leave out.
        workers: Processes; 0 runs everything here, where nothing can be killed.
        seconds: How long one row may take.
        ahead: Keys handed to each process in advance.
        on_loss: Called with the name of a row that hung or killed its process, and with what happened.

    Raises:
        UserError: That of a row, as `work` raised it.
        RuntimeError: Workers keep dying outside of any row.
    """

    def __init__(
        self,
        work: Work[T],
        workers: int,
        seconds: float = 30.0,
        ahead: int = 2,
        on_loss: Callable[[str, str], None] = lambda name, what: None,
    ) -> None:
        self.work, self.num_workers, self.seconds, self.ahead, self.on_loss = work, workers, seconds, ahead, on_loss
        self.struck: set[str] = set()
        self.deaths = 0
        # One for each key under way, one for the result in use, and one for the one before it.
        self.buffers = Buffers(ahead * workers + 2 if workers else 0)

    def results(self, keys: Iterable[int]) -> Iterator[T]:
        """Yield one result for each key; the processes end with the iterator."""
        if self.num_workers == 0:
            for key in keys:
                yield self.work(key, frozenset(self.struck))
            return
        workers: list[_Worker] = []
        try:
            workers += [self._start() for _ in range(self.num_workers)]
            yield from self._ordered(workers, iter(keys))
        finally:
            for worker in workers:
                _end(worker)
                for _, buffer in worker.keys:
                    self.buffers.give_back(buffer)

    def _ordered(self, workers: list[_Worker], keys: Iterator[int]) -> Iterator[T]:
        done: dict[int, T] = {}
        order: deque[int] = deque()
        while True:
            self._feed(workers, keys, order)
            if not order:
                return
            while order[0] not in done:
                self._receive(workers, done)
            yield done.pop(order.popleft())

    def _feed(self, workers: list[_Worker], keys: Iterator[int], order: deque[int]) -> None:
        while len(order) < self.ahead * len(workers):
            key = next(keys, None)
            if key is None:
                return
            worker = min(workers, key=lambda worker: len(worker.keys))
            order.append(key)
            if not worker.keys:
                worker.heard = time.monotonic()
            worker.keys.append((key, self.buffers.take()))
            self._send(worker, *worker.keys[-1])

    def _send(self, worker: _Worker, key: int, buffer: int | None) -> None:
        with suppress(OSError):  # it is dead: `_receive` finds out and hands its keys to another
            worker.connection.send((key, buffer, frozenset(self.struck)))

    def _receive(self, workers: list[_Worker], done: dict[int, T]) -> None:
        """Take what has arrived, and replace processes that died or are late."""
        ready = wait([worker.connection for worker in workers], timeout=min(1.0, self.seconds / 4))
        for number, worker in enumerate(workers):
            if worker.connection in ready:
                try:
                    is_result, value = self._answer_of(worker)
                except (EOFError, OSError):
                    workers[number] = self._replace(worker, "its decoder crashed")
                    continue
                if not is_result:
                    raise value
                done[worker.keys.popleft()[0]] = value
                worker.heard = time.monotonic()
            elif self._is_late(worker):
                workers[number] = self._replace(worker, f"its decoder was stopped after {self.seconds:g} s")

    def _answer_of(self, worker: _Worker) -> Any:
        """Receive an answer; its tensors are fetched from the worker, which may hang in its next row meanwhile."""
        timer = threading.Timer(SILENCE * self.seconds, worker.process.kill)
        timer.start()
        try:
            return self.buffers.load(worker.connection.recv_bytes(), worker.keys[0][1])
        finally:
            timer.cancel()

    def _is_late(self, worker: _Worker) -> bool:
        now, since = time.monotonic(), worker.slot.since
        if since:
            queued = queued_seconds(worker.process.pid) - worker.slot.queued
            return now - since - max(queued, 0.0) > self.seconds
        return bool(worker.keys) and now - worker.heard > SILENCE * self.seconds

    def _replace(self, worker: _Worker, what: str) -> _Worker:
        name = worker.slot.name.decode(errors="replace") if worker.slot.since else ""
        _end(worker)
        if name:
            self.struck.add(name)
            self.on_loss(name, what)
        else:
            self.deaths += 1
            if self.deaths > MAX_UNEXPLAINED_DEATHS:
                code = worker.process.exitcode
                raise RuntimeError(f"a data worker died {self.deaths} times outside of any row (exit code {code})")
        fresh = self._start()
        fresh.keys = worker.keys
        for key, buffer in fresh.keys:
            self._send(fresh, key, buffer)
        return fresh

    def _start(self) -> _Worker:
        import torch.multiprocessing as mp  # teaches pickle to share tensors that no buffer has room for

        context = mp.get_context("fork")
        slot = RawValue(_slot_type())
        ours, theirs = context.Pipe()
        arguments = (self.work, self.buffers, ours, theirs, slot, os.getpid())
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, slot)


def _slot_type() -> Any:
    import ctypes

    class Slot(ctypes.Structure):
        _fields_ = [("since", ctypes.c_double), ("queued", ctypes.c_double), ("name", ctypes.c_char * NAME_BYTES)]

    return Slot


def _serve(work: Work[Any], buffers: Buffers, ours: Any, connection: Any, slot: Any, parent: int) -> None:
    """Answer keys until the main process hangs up or is gone."""
    global _slot
    import torch

    _slot = slot
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:  # a sibling may hold the pipe open after the main process was killed
                    os._exit(0)
            key, buffer, struck = connection.recv()
            slot.since = 0.0
            filling = Filling(buffers, buffer)
            connection.send_bytes(filling.dump(_answer(work, key, struck)))
    except (EOFError, OSError):
        os._exit(0)


def _answer(work: Work[Any], key: int, struck: frozenset[str]) -> tuple[bool, Any]:
    try:
        return True, work(key, struck)
    except UserError as error:
        return False, error
    except Exception as error:  # a defect: the main process shows where it happened
        return False, RuntimeError(f"in a data worker: {error!r}\n{traceback.format_exc()}")


def _end(worker: _Worker) -> None:
    worker.process.kill()  # a hung decoder does not hear anything gentler
    worker.process.join()
    worker.connection.close()
