"""Score the points of a sweep, in this process or in several: where mixtures meet the evaluator."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from soups.engine.live import LiveSoup
from soups.errors import UserError
from soups.evaluator import Evaluator, FileEvaluator, checked_samples, checked_scores, load_evaluator
from soups.merge import merge
from soups.points import Point
from soups.results import Result

if TYPE_CHECKING:
    from soups.sweep import Sweep

TEMPORARY = ".soup-"  # prefix of the folders that hold one mixture while a program scores it


class Scorer:
    """An evaluator and what gives it each mixture: a live model written in place, or a temporary folder.

    Nothing is loaded before the first point. `load` gives an evaluator that several sweeps share.
    """

    def __init__(
        self, sweep: Sweep, out_dir: Path, load: Callable[[], Evaluator | FileEvaluator] | None = None
    ) -> None:
        self._sweep = sweep
        self._out_dir = out_dir
        self._load = load

    @cached_property
    def _evaluator(self) -> Evaluator | FileEvaluator:
        if self._load is not None:
            return self._load()
        return load_evaluator(self._sweep.evaluator, self._sweep.checkpoints[0].model_path, self._sweep.args)

    @cached_property
    def _soup(self) -> LiveSoup:
        assert not isinstance(self._evaluator, FileEvaluator)
        live = self._evaluator.state()
        soup = LiveSoup(self._sweep, live)
        soup.check_kept(self._evaluator.state())
        return soup

    def score(self, point: Point) -> Result:
        """Return the scores of one point; what the evaluator prints goes to stderr, as stdout may be JSON."""
        with redirect_stdout(sys.stderr):
            return self._result(point)

    def _result(self, point: Point) -> Result:
        start = time.perf_counter()
        scores = checked_scores(self._raw_scores(point), self._sweep.evaluator)
        return Result(
            key=self._sweep.key(point),
            coefficients=self._sweep.named(point),
            metrics={metric: sum(values) / len(values) for metric, values in scores.items()},
            num_samples=len(next(iter(scores.values()))),
            scores=scores,
            samples=checked_samples(self._evaluator),
            seconds=round(time.perf_counter() - start, 6),
            modules=self._sweep.named_modules(point),
        )

    def _raw_scores(self, point: Point) -> object:
        if isinstance(self._evaluator, FileEvaluator):
            folder = self._out_dir / f"{TEMPORARY}{uuid4().hex[:8]}"
            try:
                merge(self._sweep.recipe(point), folder)
                return self._evaluator.evaluate_checkpoint(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self._soup.write(point)
        scores = self._evaluator.evaluate()
        self._soup.check_kept(self._evaluator.state())  # a call of .to() or .half() moves a model elsewhere
        return scores


def remove_leftovers(out_dir: Path) -> None:
    """Remove the temporary folders of a sweep that was killed; the caller holds the lock of the folder."""
    for pattern in (f"{TEMPORARY}*", f".{TEMPORARY}*.tmp"):  # written, and being written
        for folder in out_dir.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def score_points(
    sweep: Sweep, points: Sequence[Point], out_dir: Path, num_workers: int = 1, scorer: Scorer | None = None
) -> Generator[Result, None, None]:
    """Yield the result of each point: in order with one worker, which may be given; as they finish with several.

    Each worker is a process with its own evaluator and its own copy of the checkpoints; on a machine with
    GPUs, worker i sees GPU i modulo their number. Workers end with this process, however it ends.

    Raises:
        UserError: something does not fit.
        RuntimeError: the evaluator failed in a worker, or a worker died.
    """
    if num_workers < 1:
        raise UserError(f"{num_workers} workers", where="--workers", fix="give 1 or more")
    if min(num_workers, len(points)) > 1:
        yield from _score_in_workers(sweep, points, out_dir, min(num_workers, len(points)))
        return
    scorer = scorer or Scorer(sweep, out_dir)
    for point in points:
        yield scorer.score(point)


def _score_in_workers(sweep: Sweep, points: Sequence[Point], out_dir: Path, num_workers: int) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")  # a forked child may not use CUDA
    gpus = visible_gpus()
    todo = iter(points)
    processes: dict[Connection, Any] = {}
    try:
        for index in range(num_workers):
            # One pipe each, whose far end only the worker holds: it reads end-of-file when we are killed.
            ours, theirs = context.Pipe()
            gpu = gpus[index % len(gpus)] if gpus else None
            process = context.Process(target=_work, args=(theirs, sweep, out_dir, num_workers, gpu), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            ours.send(next(todo))
        busy = set(processes)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                yield _receive(connection, processes[connection])
                point = next(todo, None)
                if point is None:
                    busy.discard(connection)
                else:
                    connection.send(point)
    finally:
        for connection, process in processes.items():
            connection.close()
            process.terminate()
            process.join()


def _receive(connection: Connection, process: Any) -> Result:
    try:
        kind, content = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise RuntimeError(
            f"a worker died with exit code {process.exitcode}; out of memory? Finished points are kept"
        ) from None
    if kind == "wrong":
        raise UserError(content["what"], where=content["where"], fix=content["fix"])
    if kind == "failed":
        raise RuntimeError(f"the evaluator failed in a worker:\n{content}")
    return content


def _work(connection: Connection, sweep: Sweep, out_dir: Path, num_workers: int, gpu: str | None) -> None:
    """Score points until the other end closes; the body of a worker process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        share_cores(num_workers)
        scorer = Scorer(sweep, out_dir)
        while True:
            connection.send(("scored", scorer.score(connection.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        message: tuple[str, Any] = ("failed", traceback.format_exc())
        if isinstance(error, ValueError) and hasattr(error, "fix"):
            fields = {"what": str(error), "where": None, "fix": None}
            message = ("wrong", {name: getattr(error, name, default) for name, default in fields.items()})
        connection.send(message)


def share_cores(num_workers: int) -> None:
    """Take one worker's part of the processor's cores for torch."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))


def visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may be set to, for one GPU each."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]
