"""What a task is, and how it is found by name (the file name is the registry)."""

import random
import string
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from unival.batch import Example, Modality, PromptType
from unival.data.answers import read_answers
from unival.errors import UserError, did_you_mean
from unival.registry import member, member_names

NEEDED = ("example", "parse", "score", "monitor")  # what a task adds to `TaskArgs`
Scores = dict[str, np.ndarray]
Answer = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Candidates = Annotated[tuple[Answer, ...], Field(min_length=1)]


def fields_of(template: str) -> set[str]:
    """Return the names in braces in a prompt.

    Raises:
        ValueError: If it is not one.
    """
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


class TaskArgs(BaseModel):
    """Base of every task: the fields are the `task_args` of a YAML file; unknown ones are refused.

    Attributes:
        modality: Of the medium.
        wording: Whose prompts and clean-ups: those of the original's fine-tuning (and of its evaluation), or those of
            its pretraining. They differ in captions, in questions without a question mark and in captions of sounds.
        candidates: A closed set of answers: nothing else can be predicted. None leaves the text free.
        candidates_file: The same in a file (`unival.data.answers`), read when it is first needed.
        choose: How to pick one of them: `search` (beam search inside the set) or `score` (the log-probability of each).
        prompt_type: What the decoder reads before the answer, as the original calls it: `none`, the prompt
            (`prev_output`: released checkpoints for questions and entailment), or the prompt with its `</s>` (`src`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Modality = "image"
    wording: Literal["finetune", "pretrain"] = "finetune"
    candidates: Candidates | None = None
    candidates_file: str | None = None
    choose: Literal["search", "score"] = "search"
    prompt_type: PromptType = "none"
    monitor: ClassVar[str]
    max_new_tokens: ClassVar[int] = 32
    min_new_tokens: ClassVar[int] = 1
    writes_codes: ClassVar[bool] = False

    @model_validator(mode="after")
    def _one_set(self) -> "TaskArgs":
        if {"candidates", "candidates_file"} <= self.model_fields_set and self.candidates and self.candidates_file:
            raise ValueError("give `candidates` or `candidates_file`, not both")
        return self

    @model_validator(mode="after")
    def _known_fields_in_prompts(self) -> "TaskArgs":
        for name in ("prompt", "caption_prompt"):
            if name not in self.model_fields_set:
                continue
            known = fields_of(type(self).model_fields[name].default)
            try:
                unknown = fields_of(getattr(self, name)) - known
            except ValueError as error:  # a brace without its other one
                unknown = {str(error)}
            if unknown:
                listed = ", ".join(f"{{{field}}}" for field in sorted(known))
                what = f"task_args.{name}: {getattr(self, name)!r} cannot be filled in: {sorted(unknown)[0]!r}"
                raise UserError(what, fix=f"fields: {listed}; a brace is written twice")
        return self

    def answer_set(self) -> tuple[str, ...] | None:
        """Return the closed set of answers, None when any text may be written.

        Raises:
            UserError: If `candidates_file` cannot be read.
        """
        return self.candidates if self.candidates_file is None else read_answers(self.candidates_file)

    def media(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the media fields of an example: the record's column is named after the modality."""
        if self.modality == "text":
            return {"modality": "text"}
        medium = column(record, self.modality)
        default = medium if isinstance(medium, str) else record["uid"]  # rows about one file share its features
        if isinstance(medium, bytes):  # a uid may be there twice, with two pictures
            default = f"{record['uid']}-{zlib.crc32(medium):08x}"
        return {"modality": self.modality, "media": medium, "media_id": str(record.get("media_id", default))}

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has what a prediction is scored against; test splits often have not."""
        return True

    def corpus(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return numbers about the whole split that are no means over its samples."""
        return {}


def is_clean(record: Mapping[str, Any]) -> bool:
    """Return whether the texts of a record are used as they are: `as_written`, as rows of the embedded world say."""
    return bool(record.get("as_written", False))


def generator_for(record: Mapping[str, Any], seed: int, purpose: str) -> random.Random:
    """Return the generator that draws for a record: a function of its uid, its `epoch` if any, and the seed."""
    key = f"{seed}/{purpose}/{record.get('epoch', 0)}/{record['uid']}"
    return random.Random(zlib.crc32(key.encode()))


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


def example_of(task: "Task", record: Mapping[str, Any], where: str) -> Example:
    """Turn the row at a place (`file:line`) into an example that knows it; so does an error about the record."""
    try:
        return replace(task.example(record), where=where)
    except UserError as error:
        is_of_record = error.where is None or error.where.startswith("record ")
        raise UserError(error.what, where if is_of_record else error.where, error.fix) from None


class Task(Protocol):
    """Text in, text out, scored by itself; no tensors, no files."""

    modality: Modality
    choose: Literal["search", "score"]
    prompt_type: PromptType
    monitor: ClassVar[str]
    max_new_tokens: ClassVar[int]
    min_new_tokens: ClassVar[int]
    writes_codes: ClassVar[bool]

    def answer_set(self) -> tuple[str, ...] | None:
        """Return the closed set of answers, None when any text may be written."""
        ...

    def example(self, record: Mapping[str, Any]) -> Example:
        """Turn a row into prompt and target."""
        ...

    def parse(self, text: str, record: Mapping[str, Any]) -> Any:
        """Turn generated text into a prediction, JSON-serialisable."""
        ...

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has what a prediction is scored against."""
        ...

    def score(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return one array of per-sample scores for each metric."""
        ...

    def corpus(self, predictions: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return numbers about the whole split that are no means over its samples."""
        ...

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return the arguments, defaults included."""
        ...


def task_names() -> list[str]:
    """List the tasks: the files of this folder."""
    return member_names("unival.tasks")


def get_task(name: str, args: Mapping[str, Any] | None = None) -> Task:
    """Build the task in `unival/tasks/<name>.py`, or in a Python file of one's own, with checked arguments.

    Raises:
        UserError: If there is no such file, or an argument is unknown or of the wrong type.
    """
    cls = member("unival.tasks", name, "Task")
    missing = [each for each in NEEDED if not hasattr(cls, each)]
    if missing or not issubclass(cls, TaskArgs):
        lack = f"has no {missing[0]}" if missing else "is no TaskArgs"
        fix = "class Task(unival.tasks.base.TaskArgs), as in unival/tasks/caption.py"
        raise UserError(f"the class Task in {name} {lack}", fix=fix)
    try:
        return cast(Task, cls(**(args or {})))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # a task's own check
            raise cause from None
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"task {name} has no argument {key!r}", fix=did_you_mean(key, cls.model_fields)) from None
        what = f"task_args.{key}: {first['msg'].replace('Input should', 'it should')}, got {first['input']!r}"
        raise UserError(what, where=f"task {name}") from None
