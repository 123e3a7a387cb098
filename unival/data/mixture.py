"""The training stream: the batch of a step is a pure function of the configuration and the step number.

So a run that resumes at step n asks for batch n: nothing is replayed and no reader state is stored. Several processes
and accumulated passes cut the rows of a step between them, so the examples of a step are the same for any number of
them.
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset

from unival.batch import Batch, Example
from unival.data.augment import augment_row
from unival.data.bad_rows import BadRow, BadRows, decoding
from unival.data.buckets import BucketOrder, bucket_of
from unival.data.source import Source, open_rows, open_source, row_name
from unival.data.workers import Workers
from unival.errors import UserError
from unival.model.processing import UnivalProcessor
from unival.objectives.base import objective_class
from unival.schema import GroupConfig, RunConfig, StageConfig, TaskEntry
from unival.tasks.base import Task, example_of, get_task

LARGEST_SHUFFLED_WORLD = 10**7
GOLDEN_SECTION = 0.381966  # of a circle: its multiples keep apart from each other
MAX_BAD_IN_SUCCESSION = 20
BUCKET_FIELD = {"image": "image_px", "video": "num_frames"}
Loss = tuple[str, str]  # where a row stands, and why it was left out
Run = TypeVar("Run", bound=RunConfig)


@dataclass(frozen=True, slots=True)
class RowSlice:
    """The rows of every step that one process takes: its turn of `world`, in `passes` whose gradients add up."""

    rank: int = 0
    world: int = 1
    passes: int = 1

    def rows(self, group: GroupConfig, number: int) -> range:
        """Return the positions in the group's stream of pass `number`, counted over all steps."""
        step, turn = divmod(number, self.passes)
        size = self.rows_per_pass(group.rows)
        first = step * group.rows + (turn * self.world + self.rank) * size
        return range(first, first + size)

    def rows_per_pass(self, rows: int) -> int:
        """Return how many rows one process takes in one pass.

        Raises:
            UserError: If they cannot be cut evenly.
        """
        size, rest = divmod(rows, self.world * self.passes)
        if rest or not size:
            parts = f"{self.world} processes x {self.passes} passes (`accumulation`)"
            what = f"{rows} rows a step cannot be cut into {parts}"
            raise UserError(what, fix=f"choose processes and passes whose product divides {rows}, or change `rows`")
        return size


class Stream:
    """Rows of one task in an order that is fixed by the seed; endless, reshuffled every epoch."""

    def __init__(
        self, entry: TaskEntry, seed: int, sizes: UnivalProcessor | None = None, needs_target: bool = False
    ) -> None:
        self.entry = entry
        self.seed = seed
        self.sizes = sizes  # of augmented media; without, they are as they are
        self.needs_target = needs_target  # rows without one are bad rows
        self.task: Task = get_task(entry.task, entry.task_args)
        self.source: Source = open_source(entry.source, entry.task, self.task.modality)
        self.num_media = len(self.source) // self.source.variants
        if self.num_media == 0:
            raise UserError(f"no rows for task {entry.task!r}", fix="raise `limit` or give more data")
        # A generator with billions of rows is random as it is, another seed begins elsewhere; a collection is shuffled.
        self.is_endless = entry.source.world is not None and self.num_media > LARGEST_SHUFFLED_WORLD
        self.start = (seed - 1) * int(GOLDEN_SECTION * self.num_media) % self.num_media
        self.order: BucketOrder | None = None  # in place of a plain shuffle

    def example(self, position: int, draw: int) -> Example:
        """Return the `draw`-th example about the medium at a stream position."""
        epoch, offset = divmod(position, self.num_media)
        if self.order is not None:
            index = self.order[position]
        elif self.is_endless:
            index = (self.start + offset) % self.num_media
        else:
            index = shuffled(offset, self.num_media, self.seed, epoch)
        variants = self.source.variants
        return self.row(index * variants + (epoch + draw) % variants, epoch)

    def row(self, index: int, epoch: int) -> Example:
        """Return the example of one row; tasks that draw something draw anew in every epoch."""
        where = row_name(self.source, index)
        with decoding(where):  # tables and archives are too large to be checked before
            row = {**self.source[index], "epoch": epoch}
        if self.entry.augment is not None and self.sizes is not None:
            medium = index // self.source.variants
            rng = np.random.default_rng((self.seed, epoch, medium))
            with decoding(where):
                row = augment_row(row, self.task.modality, self.entry.augment, self.sizes, rng)
            row["media_id"] = f"{row['media_id']}@{self.seed}/{epoch}/{medium}"
        example = example_of(self.task, row, where)
        if self.needs_target and not example.target:
            columns = ", ".join(self.source[index])
            raise BadRow.of(UserError(f"no label for task {self.entry.task!r} in the columns {columns}"), where)
        return example


class Pool:
    """All rows of several streams put together and shuffled: size-proportional mixing."""

    def __init__(self, streams: list[Stream], seed: int) -> None:
        self.streams, self.seed = streams, seed
        self.ends = list(accumulate(stream.entry.size or len(stream.source) for stream in streams))

    def example(self, position: int) -> tuple[Stream, Example]:
        """Return the stream and the example at a position of the endless order."""
        epoch, offset = divmod(position, self.ends[-1])
        drawn = shuffled(offset, self.ends[-1], self.seed, epoch)
        number = bisect_right(self.ends, drawn)
        size = self.ends[number] - (self.ends[number - 1] if number else 0)
        stream = self.streams[number]
        # A source that counts for fewer rows than it has shows others in every epoch.
        return stream, stream.row((drawn - self.ends[number] + size + epoch * size) % len(stream.source), epoch)


class StageBatches(Dataset[list[Batch]]):
    """Batches of a stage by pass: one batch per group. Without accumulation a pass is a step."""

    def __init__(self, stage: StageConfig, processor: UnivalProcessor, seed: int, rows: RowSlice | None = None) -> None:
        self.stage = stage
        self.rows = rows or RowSlice()
        self.processors = [for_group(processor, group) for group in stage.groups]
        self.groups = [self._streams(*pair, seed) for pair in zip(stage.groups, self.processors, strict=True)]
        self.pools = [Pool(streams, seed) for streams in self.groups]

    def _streams(self, group: GroupConfig, processor: UnivalProcessor, seed: int) -> list[Stream]:
        sources = [entry.source.model_dump(exclude={"content"}) for entry in group.tasks]
        # An objective that draws its answers needs none.
        learns = not hasattr(objective_class(self.stage.objective.name, self.stage.objective.args), "draw")
        streams = [
            Stream(entry, seed if group.aligned else seed + sources.index(source), processor, learns)
            for entry, source in zip(group.tasks, sources, strict=True)
        ]
        where = f"stage {self.stage.name}"
        modalities = sorted({stream.task.modality for stream in streams})
        if len(modalities) > 1:
            raise UserError(
                f"a group has one modality, got {' and '.join(modalities)}", where, "give each its own group"
            )
        check_passes(group, self.rows.rows_per_pass(group.rows), where)
        sizes = {stream.num_media for stream in streams}
        if group.mixing == "balanced" and group.aligned and len(sizes) > 1:
            listed = ", ".join(f"{stream.entry.task} {stream.num_media}" for stream in streams)
            raise UserError(
                f"an aligned group needs sources with the same media, got {listed}",
                where=where,
                fix="set `aligned: false`",
            )
        if group.buckets:
            # In blocks of an update, so that its rows do not depend on how many passes and processes share them.
            order = BucketOrder(buckets_of(streams[0], group.buckets), group.rows, seed)
            for stream in streams:
                stream.order = order
        return streams

    def __len__(self) -> int:
        return self.stage.steps * self.rows.passes

    def __getitem__(self, number: int) -> list[Batch]:
        return self.prepare(number)[0]

    def prepare(self, number: int, struck: frozenset[str] = frozenset()) -> tuple[list[Batch], list[Loss]]:
        """Return the batches of a pass, and the rows that the next ones stand in for because they cannot be decoded.

        Args:
            number: Of the pass.
            struck: Where rows stand that are not even tried.
        """
        losses: list[Loss] = []
        return [self._batch(index, number, struck, losses) for index in range(len(self.groups))], losses

    def _batch(self, index: int, number: int, struck: frozenset[str], losses: list[Loss]) -> Batch:
        bad = dict.fromkeys(struck, "its decoder hangs or crashes")
        while True:
            try:
                return self._collated(index, number, bad)
            except BadRow as error:
                bad[error.row] = error.what
                losses.append((error.row, error.what))

    def _collated(self, index: int, number: int, bad: Mapping[str, str]) -> Batch:
        group, streams = self.stage.groups[index], self.groups[index]
        examples: list[Example] = []
        entries: list[int] = []
        for position in self.rows.rows(group, number):
            if group.mixing == "proportional":
                stream, example = first_good(self.pools[index].example, position, bad)
                examples.append(example)
                entries.append(streams.index(stream))
                continue
            for entry, stream in enumerate(streams):
                turn, phase = divmod(position, stream.entry.every)
                if phase == stream.entry.offset:
                    place = position if group.aligned else turn  # alone, a stream leaves none of its rows out
                    for draw in range(stream.entry.share):
                        examples.append(first_good(lambda at, s=stream, d=draw: (s, s.example(at, d)), place, bad)[1])
                    entries += [entry] * stream.entry.share
        processor = self.processors[index]
        if group.buckets:
            modality, sizes = streams[0].task.modality, group.buckets
            largest = max(bucket_of(example.record, modality, sizes) for example in examples)
            processor = with_sizes(processor, {BUCKET_FIELD[modality]: largest})
        batch = processor.collate(examples, [group.tasks[entry].task for entry in entries])
        batch.entries = entries
        return batch


def buckets_of(stream: Stream, buckets: list[int]) -> list[int]:
    """Return the bucket of each medium of a stream.

    Raises:
        UserError: A row does not say how large it is, or sounds cannot be put into buckets.
    """
    source, modality = stream.source, stream.task.modality
    if modality not in BUCKET_FIELD:
        raise UserError(f"`buckets` are for pictures and clips, not for {modality}")
    rows = range(0, len(source), source.variants)
    return [bucket_of(source[index], modality, buckets, row_name(source, index)) for index in rows]


def first_good(
    draw: Callable[[int], tuple[Stream, Example]], place: int, bad: Mapping[str, str]
) -> tuple[Stream, Example]:
    """Return what stands at a place of an order, or the first behind it that is not known to be bad.

    Raises:
        BadRow: It has no label.
        UserError: Many in succession are bad.
    """
    row, what = "", ""
    for shift in range(MAX_BAD_IN_SUCCESSION):
        try:
            stream, example = draw(place + shift)
            row = example.where
        except BadRow as error:
            row = error.row
            if row not in bad:
                raise
        else:
            if row not in bad:
                return stream, example
        what = bad[row]
    raise UserError(f"{MAX_BAD_IN_SUCCESSION} rows in succession cannot be used: {what}", where=row)


def iterate(
    stage: StageConfig,
    processor: UnivalProcessor,
    seed: int,
    start: int,
    workers: int,
    rows: RowSlice | None = None,
) -> Iterator[list[Batch]]:
    """Yield the batches of a stage from step `start` on, prepared by `workers` processes.

    With accumulation a step is `rows.passes` consecutive items. A row that cannot be decoded, or whose decoder hangs or
    crashes, is left out, and said so.

    Raises:
        UserError: Too many rows are bad (`BadRows`), or a row is malformed.
    """
    batches = StageBatches(stage, processor, seed, rows)
    bad_rows = BadRows()
    pool = Workers(batches.prepare, workers, on_loss=bad_rows.lose)
    for prepared, losses in pool.results(range(start * batches.rows.passes, len(batches))):
        bad_rows.see(sum(len(batch.examples) for batch in prepared), losses)
        yield prepared


def with_steps(config: Run) -> Run:
    """Return the configuration with the epochs of every stage, and between its validations, turned into steps.

    The last update of an epoch may reach into the next.
    """
    stages = []
    for stage in config.stages:
        validation, changes = stage.validation, {}
        between = None if validation is None else validation.every_epochs
        if stage.epochs is not None or between is not None:
            rows, size = rows_of_epoch(stage.groups[0], config.seed), stage.groups[0].rows
            if stage.epochs is not None:
                changes |= {"steps": steps_of(stage.epochs, rows, size), "epochs": None}
            if validation is not None and between is not None:
                every = [*validation.every, steps_of(between, rows, size)]
                changes["validation"] = validation.model_copy(update={"every": every, "every_epochs": None})
        stages.append(stage.model_copy(update=changes))
    return config.model_copy(update={"stages": stages})


def steps_of(epochs: float, rows: int, size: int) -> int:
    """Return the steps of `size` rows in which `epochs` of `rows` rows are over; 1.1 times 100 is 110, not more."""
    return math.ceil(Fraction(str(epochs)) * rows / size)


def rows_of_epoch(group: GroupConfig, seed: int) -> int:
    """Return how many rows of a group are a pass over the media of its first task, or over its whole pool."""
    if group.mixing == "proportional":
        return Pool([Stream(entry, seed) for entry in group.tasks], seed).ends[-1]
    first = group.tasks[0]
    return Stream(first, seed).num_media * (1 if group.aligned else first.every)


def rows_of_files(stage: StageConfig) -> dict[str, int]:
    """Return how many rows the data set of every task has, by the task's place in the stage; worlds do not change."""
    entries = {
        f"groups.{number}.tasks.{index}": entry
        for number, group in enumerate(stage.groups)
        for index, entry in enumerate(group.tasks)
        if entry.source.world is None
    }
    return {place: len(open_rows(entry.source)) for place, entry in entries.items()}


def check_passes(group: GroupConfig, rows: int, where: str | None = None) -> None:
    """Refuse a group of which `rows` rows at a time may yield no example."""
    if has_empty_pass(group, rows):
        what = f"some steps would have no example: {rows} rows at a time, and every task has a larger `every`"
        raise UserError(what, where, "lower `every` of one task, or raise `rows`")


def has_empty_pass(group: GroupConfig, rows: int) -> bool:
    """Say whether `rows` consecutive rows of a group, counted from a multiple of them, may yield no example."""
    turns = [(entry.every, entry.offset) for entry in group.tasks]
    if min(every for every, _ in turns) <= rows:
        return False
    period = math.lcm(rows, *(every for every, _ in turns))
    taken = {position for every, offset in turns for position in range(offset, period, every)}
    return any(taken.isdisjoint(range(first, first + rows)) for first in range(0, period, rows))


def for_group(processor: UnivalProcessor, group: GroupConfig) -> UnivalProcessor:
    """Return the processor with the media sizes of a group, and the fast way to resize pictures."""
    sizes = {name: getattr(group, name) for name in ("image_px", "video_px", "num_frames")}
    processor = with_sizes(processor, {name: size for name, size in sizes.items() if size is not None})
    processor.exact_resize = False
    return processor


def with_sizes(processor: UnivalProcessor, sizes: dict[str, int]) -> UnivalProcessor:
    """Return a copy of the processor with other media sizes."""
    processor = copy.copy(processor)
    for name, size in sizes.items():
        setattr(processor, name, size)
    return processor


def shuffled(index: int, length: int, seed: int, epoch: int) -> int:
    """Return where `index` goes in a shuffle of `length` items; computed alone, so any length costs the same.

    A Feistel network over the next power of four (Luby and Rackoff 1988), walked until the result is below `length`
    (Black and Rogaway 2002).
    """
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = _mix(_mix(_mix(seed) ^ epoch) ^ length)
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(key ^ _mix(right + (turn << 48))) & mask)
        index = left << half | right
        if index < length:
            return index


def _mix(number: int) -> int:
    """Return 64 well mixed bits of a number (the finaliser of splitmix64, Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return number ^ (number >> 31)
