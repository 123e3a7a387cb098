"""Score the mixtures of a study in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soups.scoring import share_cores, visible_gpus
from soups.study.parts import Models
from soups.study.plan import Plan
from soups.study.scores import Do, Judges, Work

_judges: Judges  # of a worker


@contextmanager
def works_done(plan: Plan, models: Models, root: Path, num_workers: int) -> Iterator[Do]:
    """Give a function that does works: here, or in several processes with an evaluator each.

    Worker i sees GPU i modulo their number. Workers end with this process, however it ends.
    """
    if num_workers == 1:
        judges = Judges(plan, models, root)
        yield lambda works: map(judges.do, works)
        return
    context = multiprocessing.get_context("spawn")  # a forked child may not use CUDA
    gpus: Any = context.SimpleQueue()
    available = visible_gpus()
    for index in range(num_workers):
        gpus.put(available[index % len(available)] if available else None)
    pool = ProcessPoolExecutor(num_workers, context, _begin, (plan, root, num_workers, gpus))

    def do(works: Sequence[Work]) -> Iterable[Any]:
        try:
            yield from pool.map(_do, works)
        except BrokenProcessPool:
            raise RuntimeError("a worker died; out of memory? Finished points are kept") from None

    try:
        yield do
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # a work that was begun need not come to its end
            process.terminate()


def _begin(plan: Plan, root: Path, num_workers: int, gpus: Any) -> None:
    """Make a worker ready."""
    global _judges
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    share_cores(num_workers)
    _judges = Judges(plan, Models(plan, root, lambda line: None), root)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(work: Work) -> Any:
    return _judges.do(work)
