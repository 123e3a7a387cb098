"""Rewards in line, or in worker processes while the model goes on."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from unival.rewards import Record, Rewards, WeightedReward

TEXT = str | int | float | list | tuple | dict  # and null: what JSON holds
_REWARD: WeightedReward | None = None  # of a worker process


class Scorer:
    """Scores texts by a weighted reward.

    Args:
        reward: What to compute. With workers it is sent to them once.
        num_workers: 0 computes in line. A process pays off for rewards that take longer than about 10 ms a batch.
    """

    def __init__(self, reward: WeightedReward, num_workers: int = 0) -> None:
        self.reward, self.num_workers = reward, num_workers
        self.pool: ProcessPoolExecutor | None = None

    def submit(self, texts: Sequence[str], records: Sequence[Record]) -> Callable[[], dict[str, Rewards]]:
        """Start scoring; the call that is returned waits and gives the rewards (samples,) by name."""
        if self.num_workers == 0:
            terms = self.reward.terms(texts, records)
            return lambda: terms
        if self.pool is None:
            # A forked child would inherit the locks of torch's threads.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.num_workers, context, _start_worker, (self.reward,))
        fields = [text_fields(record) for record in records]
        size = -(-len(texts) // self.num_workers)
        starts = range(0, len(texts), size)
        futures = [self.pool.submit(_score, texts[i : i + size], fields[i : i + size]) for i in starts]

        def wait() -> dict[str, Rewards]:
            parts = [future.result() for future in futures]
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

        return wait


def text_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what rewards may read of a record: not the media, which would be copied to the worker."""
    return {key: value for key, value in record.items() if value is None or isinstance(value, TEXT)}


def _start_worker(reward: WeightedReward) -> None:
    global _REWARD
    _REWARD = reward
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End when the parent was killed: it has no chance to say so, and a pool's worker waits forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _score(texts: Sequence[str], records: Sequence[Record]) -> dict[str, Rewards]:
    assert _REWARD is not None
    return _REWARD.terms(texts, records)
