"""The models of a study, each made once: a folder named after its key, complete when it says so."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soups.engine import guard
from soups.engine.jobs import num_cores
from soups.errors import UserError
from soups.merge import Recipe, merge
from soups.methods import get_method
from soups.scoring import visible_gpus
from soups.state import Checkpoint, open_checkpoint, write_text
from soups.study.plan import Node, Plan

DONE, LOG = "done.json", "log.txt"
LAST_LINES = 12
# What a killed run was writing; the folders of the trainings themselves are their own.
LEFTOVERS = (".*.tmp", "figures/.*.tmp", "scores/*/.*.tmp", "scores/*/*/.*.json.*.tmp", "trainings/*/.done.json.*.tmp")
FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
STOPPED = (130, 143)  # exit codes after SIGINT and SIGTERM

Report = Callable[[str], None]


def slug(name: str) -> str:
    """Return a name that is safe as a folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-") or "part"


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the folder of a study, so that two commands do not work in it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "this study is running", where=str(root), fix="wait for it, or give another --out"
            ) from None
        for path in (path for pattern in LEFTOVERS for path in root.glob(pattern) if path.is_file()):
            path.unlink()
        yield


class Models:
    """The checkpoints of a study on disk.

    Args:
        plan: what to make.
        root: folder of the study.
        report: called with a line about everything that is begun.
    """

    def __init__(self, plan: Plan, root: Path, report: Report) -> None:
        self.plan, self.root, self.report = plan, root, report
        self.opened: dict[tuple[str, str], Checkpoint] = {}

    def folder(self, node: Node) -> Path:
        """Return where a model is made."""
        kind = "trainings" if node.is_training else "merged"
        return self.root / kind / f"{slug(node.name)}-{node.key[:12]}"

    def path(self, node_id: str) -> Path:
        """Return the checkpoint of a node that is made."""
        node = self.plan.nodes[node_id]
        if node.is_training:
            return self.folder(node) / "run" / node.model if node.model else self.folder(node) / "run"
        if not node.needs:
            return Path(node.model)
        is_file = all(self.path(needed).suffix in FILES for needed in node.needs.values())  # trainers then read files
        return self.folder(node) / "model.safetensors" if is_file else self.folder(node)

    def checkpoint(self, node_id: str, name: str = "") -> Checkpoint:
        """Return a node's checkpoint under a name, opened once."""
        key = node_id, name or self.plan.nodes[node_id].name
        if key not in self.opened:
            self.opened[key] = open_checkpoint(self.path(node_id), key[1])
        return self.opened[key]

    def is_done(self, node: Node) -> bool:
        """Say whether a node needs no more work."""
        if node.is_training:
            return (self.folder(node) / DONE).is_file()
        return not node.needs or self.folder(node).is_dir()

    def make_all(self, num_workers: int = 1) -> None:
        """Train and merge what is not there.

        Args:
            num_workers: trainings at the same time; each gets its part of the cores, or a GPU of its own in turn.

        Raises:
            UserError: a command failed, or wrote no checkpoint. Other trainings that run come to their end first.
        """
        trainings = self.plan.trainings()
        waiting = [node for node in self.plan.nodes.values() if not self.is_done(node)]
        todo = [node.id for node in waiting if node.is_training]
        self.report(f"{len(trainings)} trainings, {len(trainings) - len(todo)} of them done")
        free = environments(num_workers)
        running: dict[Future[None], tuple[Node, dict[str, str]]] = {}
        with ThreadPoolExecutor(num_workers) as pool:
            while waiting or running:
                ready = [node for node in waiting if self._can_start(node)]
                for node in ready:
                    if not node.is_training:
                        self._merge(node)
                    elif free:
                        self.report(f"training {todo.index(node.id) + 1}/{len(todo)}: {node.id}")
                        environment = free.pop(0)
                        running[pool.submit(self._train, node, environment)] = node, environment
                    else:
                        continue
                    waiting.remove(node)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    free.append(running.pop(future)[1])
                    future.result()

    def _can_start(self, node: Node) -> bool:
        return all(self.is_done(self.plan.nodes[needed]) for needed in node.needs.values())

    def _merge(self, node: Node) -> None:
        members = [self.checkpoint(needed) for needed in node.needs.values()]
        weights = [1 / len(members)] * len(members)
        merge(Recipe(members, weights, get_method("linear"), None, self.plan.study.integers), self.folder(node))

    def seconds(self) -> dict[str, float]:
        """Return how long each training took."""
        return {
            node.id: json.loads((self.folder(node) / DONE).read_text(encoding="utf-8"))["seconds"]
            for node in self.plan.trainings()
        }

    def command(self, node: Node) -> list[str]:
        """Return the words of a training, complete."""
        places = {place: str(self.path(needed)) for place, needed in node.needs.items()}
        places["out"] = str(self.folder(node) / "run")
        words = list(node.words)
        for place, value in places.items():
            words = [word.replace(f"{{{place}}}", value) for word in words]
        return words

    def _train(self, node: Node, environment: Mapping[str, str]) -> None:
        folder, words = self.folder(node), self.command(node)
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        run(words, folder / LOG, environment)
        try:
            open_checkpoint(self.path(node.id))
        except UserError as error:
            fix = f"check `model`, relative to {{out}}; its output is in {folder / LOG}"
            raise UserError(f"no checkpoint: {error.what}", where=shlex.join(words), fix=fix) from error
        content: dict[str, Any] = {
            "id": node.id,
            "key": node.key,
            "words": words,
            "seconds": round(time.monotonic() - start, 2),
        }
        write_text(folder / DONE, json.dumps(content, indent=1) + "\n")


def environments(num_workers: int) -> list[dict[str, str]]:
    """Return what each of several trainings at the same time adds to the environment: its threads, its GPU."""
    if num_workers == 1:
        return [{}]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // num_workers)))
    gpus = visible_gpus()
    own_gpu = [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {} for index in range(num_workers)]
    return [{"OMP_NUM_THREADS": threads} | gpu for gpu in own_gpu]


def run(words: list[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a program to its end, its output in a file.

    Raises:
        UserError: it cannot be started, or fails.
        KeyboardInterrupt: it was interrupted.
    """
    beside = shutil.which(words[0], path=str(Path(sys.executable).parent))
    program = sys.executable if words[0] == "python" else beside or shutil.which(words[0])
    if program is None:
        raise UserError(f"no program called {words[0]!r}", where=shlex.join(words), fix="install it, or give its path")
    with log.open("ab") as output:
        command = [sys.executable, guard.__file__, program, *words[1:]]
        env = os.environ | (environment or {})
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=env
        ) as child:
            try:
                code = child.wait()
            except KeyboardInterrupt:
                child.wait()  # the guard got the signal too, and the program may write a checkpoint
                raise
    if code in STOPPED:
        raise KeyboardInterrupt
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
        lines = "".join(f"\n    {line}" for line in said)
        raise UserError(
            f"the training ended with exit code {code}:{lines}",
            where=shlex.join(words),
            fix=f"run it by hand; all of its output is in {log}",
        )
