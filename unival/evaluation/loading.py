"""Rows of an evaluation made ready for the model, by processes that can be killed when a decoder hangs."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unival.batch import Batch
from unival.data.bad_rows import BadRow
from unival.data.source import Source, row_name
from unival.data.workers import Workers
from unival.errors import UserError
from unival.model.processing import UnivalProcessor
from unival.tasks.base import Task, example_of

SECONDS = 30.0  # that one medium may take


@dataclass(slots=True)
class Ready:
    """Some rows of a source, with one batch.

    Attributes:
        indices, records: The rows.
        batch: Of those whose medium could be decoded, in order; None if there is none.
        bad: Why the others could not, by index.
    """

    indices: list[int]
    records: list[Mapping[str, Any]]
    batch: Batch | None
    bad: dict[int, str]


def make_ready(
    processor: UnivalProcessor,
    task: Task,
    source: Source,
    indices: Sequence[int],
    struck: frozenset[str] = frozenset(),
    keeps_bad: bool = False,
) -> Ready:
    """Read rows and decode their media.

    Args:
        processor, task, source: What makes a batch of them.
        indices: The rows.
        struck: Where rows stand whose decoder hung or crashed: they are not tried again.
        keeps_bad: Go on without a medium that cannot be decoded.

    Raises:
        BadRow: A medium cannot be decoded, and `keeps_bad` is off.
    """
    records = {index: source[index] for index in indices}
    examples = {index: example_of(task, record, row_name(source, index)) for index, record in records.items()}
    bad = {index: "its decoder hangs or crashes" for index in indices if examples[index].where in struck}
    while good := [index for index in indices if index not in bad]:
        try:
            batch = processor.collate([examples[index] for index in good])
        except BadRow as error:
            found = {index: error.what for index in good if examples[index].where == error.row}
            if not keeps_bad or not found:
                raise
            bad |= found
        else:
            return Ready(list(indices), list(records.values()), batch, bad)
    return Ready(list(indices), list(records.values()), None, bad)


def load(
    processor: UnivalProcessor,
    task: Task,
    source: Source,
    chunks: Sequence[Sequence[int]],
    workers: int = 0,
    max_bad: int = 0,
    seconds: float = SECONDS,
) -> Iterator[Ready]:
    """Yield the chunks of a source in order, each ready.

    Args:
        processor, task, source: What makes a batch of rows.
        chunks: Indices of rows, a batch each.
        workers: Processes that decode; 0 decodes here, where nothing can be stopped.
        max_bad: So many rows whose medium cannot be decoded are named on stderr; the next one ends the evaluation.
        seconds: That one medium may take.

    Raises:
        UserError: Too many rows are bad, or one is malformed.
    """

    def on_loss(row: str, what: str) -> None:
        if not max_bad:
            raise BadRow.of(UserError(what, fix="`max_bad_rows` goes on without it"), row)

    def work(number: int, struck: frozenset[str]) -> Ready:
        return make_ready(processor, task, source, chunks[number], struck, keeps_bad=max_bad > 0)

    num_bad = 0
    for ready in Workers(work, workers, seconds, on_loss=on_loss).results(range(len(chunks))):
        for index, what in ready.bad.items():
            num_bad += 1
            print(f"no prediction: {UserError(what, where=row_name(source, index))}", file=sys.stderr)
        if num_bad > max_bad:
            what = f"{num_bad} rows cannot be read, max_bad_rows is {max_bad}"
            raise UserError(what, fix="look at all of them with `unival data check`")
        yield ready
