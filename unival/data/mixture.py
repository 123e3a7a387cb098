"""The training stream: the batch of a step is a pure function of the configuration and the step number.

So a run that resumes at step n asks for batch n: nothing is replayed and no reader state is stored.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from unival.batch import Batch, Example
from unival.data.source import Source, open_source, permutation
from unival.errors import UserError
from unival.model.processing import UnivalProcessor
from unival.schema import GroupConfig, StageConfig, TaskEntry
from unival.tasks.base import Task, get_task


class Stream:
    """Rows of one task in an order that is fixed by the seed; endless, reshuffled every epoch."""

    def __init__(self, entry: TaskEntry, seed: int) -> None:
        self.entry = entry
        self.seed = seed
        self.task: Task = get_task(entry.task, entry.task_args)
        self.source: Source = open_source(entry.source, entry.task, self.task.modality)
        self.num_media = len(self.source) // self.source.variants
        if self.num_media == 0:
            raise UserError(f"no rows for task {entry.task!r}", fix="raise `limit` or give more data")
        # A generator with billions of rows is already random; a finite collection is shuffled.
        self.is_endless = self.num_media > 10**7

    def example(self, position: int, draw: int) -> Example:
        """Return the `draw`-th example about the medium at a stream position."""
        epoch, offset = divmod(position, self.num_media)
        index = offset if self.is_endless else int(permutation(self.num_media, self.seed, epoch)[offset])
        variants = self.source.variants
        return self.task.example(self.source[index * variants + (epoch + draw) % variants])


class StageBatches(Dataset[list[Batch]]):
    """Batches of a stage by step: one batch per group."""

    def __init__(self, stage: StageConfig, processor: UnivalProcessor, seed: int) -> None:
        self.stage = stage
        self.processor = processor
        self.groups = [self._streams(group, seed) for group in stage.groups]

    def _streams(self, group: GroupConfig, seed: int) -> list[Stream]:
        streams = [Stream(entry, seed if group.aligned else seed + index) for index, entry in enumerate(group.tasks)]
        where = f"stage {self.stage.name}"
        modalities = sorted({stream.task.modality for stream in streams})
        if len(modalities) > 1:
            raise UserError(
                f"a group has one modality, got {' and '.join(modalities)}", where, "give each its own group"
            )
        if min(entry.every for entry in group.tasks) > group.rows:
            raise UserError(
                f"some steps would have no example: {group.rows} rows a step, and every task has a larger `every`",
                where,
                "lower `every` of one task, or raise `rows`",
            )
        sizes = {stream.num_media for stream in streams}
        if group.aligned and len(sizes) > 1:
            listed = ", ".join(f"{stream.entry.task} {stream.num_media}" for stream in streams)
            raise UserError(
                f"an aligned group needs sources with the same media, got {listed}",
                where=where,
                fix="set `aligned: false`",
            )
        return streams

    def __len__(self) -> int:
        return self.stage.steps

    def __getitem__(self, step: int) -> list[Batch]:
        return [
            self._batch(group, streams, step) for group, streams in zip(self.stage.groups, self.groups, strict=True)
        ]

    def _batch(self, group: GroupConfig, streams: list[Stream], step: int) -> Batch:
        examples, names = [], []
        for position in range(step * group.rows, (step + 1) * group.rows):
            for stream in streams:
                if position % stream.entry.every == 0:
                    examples += [stream.example(position, draw) for draw in range(stream.entry.share)]
                    names += [stream.entry.task] * stream.entry.share
        return self.processor.collate(examples, names, group.image_px)


def iterate(
    stage: StageConfig, processor: UnivalProcessor, seed: int, start: int, workers: int
) -> Iterator[list[Batch]]:
    """Yield the batches of a stage from step `start` on, prepared by `workers` processes."""
    loader = DataLoader(
        StageBatches(stage, processor, seed),
        batch_size=None,
        sampler=range(start, stage.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
        timeout=120 if workers else 0,
        generator=torch.Generator(),  # otherwise a resumed run draws once more from the one that dropout uses
    )
    return iter(loader)
