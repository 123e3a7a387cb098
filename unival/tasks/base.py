"""What a task is, and how it is found by name (the file name is the registry)."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from unival.batch import Example, Modality
from unival.errors import UserError, did_you_mean

Scores = dict[str, np.ndarray]
Answer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Candidates = Annotated[tuple[Answer, ...], Field(min_length=1)]


class TaskArgs(BaseModel):
    """Base of every task: the fields are the `task_args` of a YAML file; unknown ones are refused.

    Attributes:
        modality: Of the medium.
        candidates: A closed set of answers: nothing else can be predicted. None leaves the text free.
        choose: How to pick one of them: `search` (beam search inside the set) or `score` (the log-probability of each).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Modality = "image"
    candidates: Candidates | None = None
    choose: Literal["search", "score"] = "search"
    monitor: ClassVar[str]
    max_new_tokens: ClassVar[int] = 32
    min_new_tokens: ClassVar[int] = 1

    def media(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the media fields of an example: the record's column is named after the modality."""
        if self.modality == "text":
            return {"modality": "text"}
        medium = column(record, self.modality)
        default = medium if isinstance(medium, str) else record["uid"]  # rows about one file share its features
        return {"modality": self.modality, "media": medium, "media_id": str(record.get("media_id", default))}


def column(record: Mapping[str, Any], name: str) -> Any:
    """Return a column of a record.

    Raises:
        UserError: If the record has no such column.
    """
    if name not in record:
        raise UserError(
            f"the record has no column {name!r}",
            where=f"record {record.get('uid')}",
            fix=f"its columns are {', '.join(map(str, record))}",
        )
    return record[name]


class Task(Protocol):
    """Text in, text out, scored by itself; no tensors, no files."""

    modality: Modality
    candidates: tuple[str, ...] | None
    choose: Literal["search", "score"]
    monitor: ClassVar[str]
    max_new_tokens: ClassVar[int]
    min_new_tokens: ClassVar[int]

    def example(self, record: Mapping[str, Any]) -> Example:
        """Turn a row into prompt and target."""
        ...

    def parse(self, text: str, record: Mapping[str, Any]) -> Any:
        """Turn generated text into a prediction, JSON-serialisable."""
        ...

    def score(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return one array of per-sample scores for each metric."""
        ...


def task_names() -> list[str]:
    """List the tasks: the files of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "base")


def get_task(name: str, args: Mapping[str, Any] | None = None) -> Task:
    """Build the task in `unival/tasks/<name>.py` with checked arguments.

    Raises:
        UserError: If there is no such file, or an argument is unknown or of the wrong type.
    """
    if name not in task_names():
        raise UserError(f"unknown task {name!r}", fix=did_you_mean(name, task_names()))
    cls = importlib.import_module(f"unival.tasks.{name}").Task
    try:
        return cls(**(args or {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"task_args.{key}: {first['msg']}, got {first['input']!r}",
            where=f"task {name}",
            fix=f"its arguments are {', '.join(cls.model_fields)}",
        ) from None
