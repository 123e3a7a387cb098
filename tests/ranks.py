"""Several processes that form a group, as those of torchrun do, forked from one that has imported everything."""

import hashlib
import multiprocessing
import os
import queue
import signal
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from unival.schema import RunConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.ranks", "tests.tiny", "unival.train"])
TIMEOUT_SECONDS = 600


def start(function: Callable[..., Any], size: int, *args: Any) -> tuple[list[Any], Any]:
    """Call a module's function in `size` processes; return them, and the queue of (rank, problem, result)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_enter, args=(function, rank, size, port, results, args)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes, results


def run(function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    """Call a module's function in `size` processes; return their results in the order of ranks.

    Raises:
        AssertionError: With the traceback of a process that failed.
    """
    processes, results = start(function, size, *args)
    found: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, problem, value = results.get(timeout=TIMEOUT_SECONDS)
            assert problem is None, f"process {rank}:\n{problem}"
            found[rank] = value
    except queue.Empty:
        raise AssertionError(f"processes hang; finished: {sorted(found)}") from None
    finally:
        for process in processes:
            if len(found) < size:
                process.kill()
            process.join()
    return [found[rank] for rank in range(size)]


def _enter(function: Callable[..., Any], rank: int, size: int, port: int, results: Any, args: Sequence[Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    try:
        results.put((rank, None, function(*args)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))


def train_until(settings: dict[str, Any], stop: int | None) -> str | None:
    """Train; the last process gets SIGTERM in the `stop`-th step from now on. Return what an interruption says."""
    from unival.train import Interrupted, StageLoop, train

    step, calls = StageLoop.step, iter(range(1, 10**6))
    is_last = os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)

    def stepped(self: StageLoop, *args: Any) -> dict[str, float]:
        if next(calls) == stop and is_last:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    StageLoop.step = stepped
    try:
        train(RunConfig.model_validate(settings))
    except Interrupted as interruption:
        return str(interruption)
    finally:
        StageLoop.step = step
    return None


def outlived(settings: dict[str, Any]) -> bool:
    """Interrupt a run in its first step; return whether what averages gradients outlived the group of processes."""
    from unival.train import StageLoop, train

    step, wrapped = StageLoop.step, []

    def stepped(self: StageLoop, *_: Any) -> dict[str, float]:
        wrapped.append(self.losses)
        raise KeyboardInterrupt

    StageLoop.step = stepped
    try:
        train(RunConfig.model_validate(settings))
    except KeyboardInterrupt:  # its traceback would keep it
        return "reducer" in vars(wrapped[0])
    finally:
        StageLoop.step = step
    raise AssertionError("the run was not interrupted")


def hashes(run_dir: Path, checkpoint: str) -> dict[str, str]:
    """Return the sha256 of every tensor of a checkpoint: weights, averages, moments, generators.

    Of tensors, not of files: safetensors writes what is not a tensor in any order.
    """
    found = {}
    for path in sorted((run_dir / checkpoint).rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            name = path.relative_to(run_dir / checkpoint).as_posix()
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                content = file.get_tensor(key).contiguous().numpy().tobytes()
                found[f"{name}/{key}"] = hashlib.sha256(content).hexdigest()
            found[f"{name}/others"] = (file.metadata() or {}).get("others", "")
    return found
