"""The predictions of an evaluation while it runs: on disk, so that a killed one continues, and shared by processes.

Each process appends the rows it has finished to a file of its own:
{"index": 17, "record": {"uid": "17", "question": "what is it?"}, "prediction": "a cat"}
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unival.errors import UserError
from unival.training.distributed import World

Row = dict[str, Any]


class PredictionStore:
    """Finished rows in a folder that all processes see.

    Args:
        folder: Belongs to one evaluation with one set of settings; made when the first row is written.
        world: This process among those that share the work.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.world.gather(None)

    def rows(self) -> dict[int, Row]:
        """Return the rows that any process has finished, by index; a line cut by a kill does not count.

        Raises:
            UserError: If two rows with one index differ.
        """
        found: dict[int, Row] = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    row = json.loads(line)
                    index = row["index"]
                except (ValueError, TypeError, KeyError):
                    continue
                if found.setdefault(index, row)["prediction"] != row["prediction"]:
                    fix = "delete the folder and evaluate again"
                    raise UserError(f"two predictions for row {index}", where=str(self.folder), fix=fix)
        return found

    def append(self, rows: Iterable[Row]) -> None:
        """Write finished rows; they survive a kill from here on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank-{self.world.rank}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with path.open("ab+") as file:
            if file.tell():  # behind a line that a kill has cut
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else "\n" + text
            file.write(text.encode())

    def discard(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


class MemoryStore(PredictionStore):
    """Finished rows of a single process that nobody continues."""

    def __init__(self) -> None:
        super().__init__(Path(), World())
        self.finished: dict[int, Row] = {}

    def rows(self) -> dict[int, Row]:
        """Return the finished rows by index."""
        return self.finished

    def append(self, rows: Iterable[Row]) -> None:
        """Keep finished rows."""
        self.finished |= {row["index"]: row for row in rows}


def text_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a record is no medium: texts, numbers, truth values, and lists or objects of them."""
    return {name: as_json(value) for name, value in record.items() if is_json(value)}


def is_json(value: Any) -> bool:
    """Return whether a value can be written as JSON by `as_json`."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_json, value))
    return value is None or isinstance(value, str | int | float | np.number | np.bool_)


def as_json(value: Any) -> Any:
    """Return a value in the types that reading it back from JSON gives."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value.item() if isinstance(value, np.number | np.bool_) else value
