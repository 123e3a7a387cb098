"""Tied tensors: one tensor under two names, such as an embedding that is the output layer too.

A file of torch holds both names, one of transformers only one of them. Where checkpoints of both kinds meet, the name
that some lack is no tensor of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from soups.sources.config import OUTPUT
from soups.sources.info import ITEM_BYTES

if TYPE_CHECKING:
    from soups.state import Checkpoint

COMPARED_BYTES = 1 << 24  # at a time


def copied_names(checkpoints: Sequence[Checkpoint]) -> set[str]:
    """Return the names that only some of these have, and that are a copy of one tensor of all wherever they are."""
    everywhere, some = _names(checkpoints)
    owners = {name: [each for each in checkpoints if name in each.infos] for name in some}
    return {
        name for name in some if any(all(is_copy(each, name, other) for each in owners[name]) for other in everywhere)
    }


def is_copy(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Say whether two tensors are one under two names: at one place in a file, or an output layer with equal bytes.

    Only the second reads data, and once. Anything else with equal bytes may be a copy that is meant, as the encoder of
    a teacher is, or alike by chance, as the ones of two layer norms are.
    """
    one, two = checkpoint.infos[name], checkpoint.infos[other]
    if (one.dtype, one.shape) != (two.dtype, two.shape) or checkpoint.updates.keys() & {name, other}:
        return False
    if one == two:
        return True
    if not (OUTPUT.fullmatch(name) and checkpoint.is_contiguous(name) and checkpoint.is_contiguous(other)):
        return False
    if (name, other) not in checkpoint.known_copies:
        checkpoint.known_copies[name, other] = _has_same_bytes(checkpoint, name, other)
    return checkpoint.known_copies[name, other]


def maybe_tied(checkpoints: Sequence[Checkpoint]) -> tuple[str, str, str] | None:
    """Return an output layer that a model lacks, the tensor of its shape that may be it there, and the model."""
    everywhere, some = _names(checkpoints)
    for name in filter(OUTPUT.fullmatch, some):
        owner = next(each for each in checkpoints if name in each.infos)
        shape = owner.infos[name].shape
        other = next((other for other in everywhere if owner.infos[other].shape == shape), None)
        if other:
            return name, other, next(each.name for each in checkpoints if name not in each.infos)
    return None


def _names(checkpoints: Sequence[Checkpoint]) -> tuple[list[str], list[str]]:
    """Return the names that all checkpoints have, and those that only some have."""
    names = sorted({name for each in checkpoints for name in each.infos})
    everywhere = [name for name in names if all(name in each.infos for each in checkpoints)]
    return everywhere, sorted(set(names) - set(everywhere))


def _has_same_bytes(checkpoint: Checkpoint, name: str, other: str) -> bool:
    info = checkpoint.infos[name]
    size, first, varies = ITEM_BYTES[info.dtype], b"", False
    with checkpoint.reader() as read:
        for start in range(0, info.num_bytes, COMPARED_BYTES):
            one, two = (bytearray(min(COMPARED_BYTES, info.num_bytes - start)) for _ in range(2))
            read.fill(name, start // size, memoryview(one))
            read.fill(other, start // size, memoryview(two))
            if one != two:
                return False
            first = first or bytes(one[:size])
            varies = varies or one != first * (len(one) // size)
    return varies
