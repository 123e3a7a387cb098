"""Processes that prepare data: order, crashes, hangs, errors, no orphans."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unival.data.workers import Workers, watched
from unival.errors import UserError


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_the_order_of_the_keys(workers: int) -> None:
    def work(key: int, struck: frozenset[str]) -> torch.Tensor:
        time.sleep(0.01 * (key % 3))
        return torch.full((2,), key)

    found = list(Workers(work, workers).results(range(20)))
    assert [int(tensor[0]) for tensor in found] == list(range(20))


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    while True:
        time.sleep(1)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (hang, "was stopped after 0.5 s"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "crashed"),
        (os.abort, "crashed"),
    ],
    ids=["hang", "kill", "abort"],
)
def test_a_row_that_harms_its_worker_is_struck_off_and_the_rest_goes_on(harm: Callable[[], Any], what: str) -> None:
    def work(key: int, struck: frozenset[str]) -> tuple[int, int]:
        name = f"rows.tsv:{key}"
        if name in struck:
            return -key, os.getpid()
        with watched(name):
            if key in (3, 7):
                harm()
        return key, os.getpid()

    losses = []
    workers = Workers(work, 2, seconds=0.5, on_loss=lambda name, what: losses.append((name, what)))
    found = list(workers.results(range(12)))
    assert [key for key, _ in found] == [0, 1, 2, -3, 4, 5, 6, -7, 8, 9, 10, 11]
    assert sorted(name for name, _ in losses) == ["rows.tsv:3", "rows.tsv:7"]
    assert all(what in text for _, text in losses)
    assert not any(is_alive(pid) for _, pid in found)


def test_an_error_names_itself_and_ends_all_workers() -> None:
    pids: list[int] = []

    def work(key: int, struck: frozenset[str]) -> int:
        if key == 4:
            raise UserError("bad row", where="rows.tsv:4", fix="repair it")
        return os.getpid()

    with pytest.raises(UserError, match=r"bad row \[rows.tsv:4\] \(repair it\)"):
        pids.extend(Workers(work, 2).results(range(10)))
    assert not any(map(is_alive, pids))


def test_a_defect_shows_where_it_happened() -> None:
    def work(key: int, struck: frozenset[str]) -> int:
        return 1 // key

    with pytest.raises(RuntimeError, match=r"ZeroDivisionError(.|\n)*return 1 // key"):
        list(Workers(work, 1).results([0]))


def test_workers_that_die_without_a_row_end_the_run() -> None:
    def work(key: int, struck: frozenset[str]) -> int:
        os._exit(5)

    with pytest.raises(RuntimeError, match=r"died 4 times outside of any row \(exit code 5\)"):
        list(Workers(work, 1).results([0]))


def test_an_iterator_that_is_dropped_leaves_no_process() -> None:
    results = Workers(lambda key, struck: os.getpid(), 2).results(range(100))
    pids = {next(results) for _ in range(4)}
    results.close()
    assert not any(map(is_alive, pids))
