"""Batches of pictures of similar size, or of clips of similar length, so that none is blown up to the largest."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from unival.errors import UserError


def bucket_of(row: Mapping[str, Any], modality: str, buckets: Sequence[int], where: str = "") -> int:
    """Return the bucket that a row belongs to.

    A picture belongs to the smallest side that is not below its own shorter one, a clip to the largest number of frames
    that it has; where there is none, to the nearest.

    Args:
        row: With `width` and `height`, or `frames`.
        modality: "image" or "video".
        buckets: Sides in pixels, or numbers of frames.
        where: For messages.

    Raises:
        UserError: The row does not say how large it is.
    """
    fields = ("width", "height") if modality == "image" else ("frames",)
    missing = [name for name in fields if name not in row]
    if missing:
        fix = "buckets need it in every row"
        raise UserError(f"the row has no {' and '.join(missing)}", where=where or str(row.get("uid")), fix=fix)
    size = min(row[name] for name in fields)
    if modality == "image":
        return min((bucket for bucket in buckets if bucket >= size), default=max(buckets))
    return max((bucket for bucket in buckets if bucket <= size), default=min(buckets))


class BucketOrder:
    """An endless order of rows, shuffled anew in every epoch, whose blocks hold rows of one bucket.

    Block `k` is the positions from `k * block` to `(k + 1) * block`. Each epoch holds every row once; what is left of
    the buckets when they are cut into blocks shares the few blocks that are mixed.

    Args:
        buckets: The bucket of each row.
        block: Rows of a block.
        seed: Of the shuffles.
    """

    def __init__(self, buckets: Sequence[int], block: int, seed: int) -> None:
        self.buckets = np.asarray(buckets)
        self.block, self.seed = block, seed
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.buckets))
        return int(self.epoch(epoch)[offset])

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        num_rows = len(self.buckets)
        shuffled = rng.permutation(num_rows)
        whole, rest = [], []
        for bucket in np.unique(self.buckets):
            rows = shuffled[self.buckets[shuffled] == bucket]
            num_whole = len(rows) // self.block
            whole += np.split(rows[: num_whole * self.block], num_whole) if num_whole else []
            rest.append(rows[num_whole * self.block :])
        whole = [whole[number] for number in rng.permutation(len(whole))]
        # An epoch that does not begin with a block first fills up the last one of the epoch before.
        first = min(-epoch * num_rows % self.block, num_rows)
        last = (num_rows - first) % self.block
        while sum(map(len, rest)) < first + last:
            rest.append(whole.pop())
        mixed = np.concatenate(rest)
        middle = np.split(mixed[first : len(mixed) - last], (len(mixed) - first - last) // self.block or 1)
        blocks = [*whole, *(part for part in middle if len(part))]
        blocks = [blocks[number] for number in rng.permutation(len(blocks))]
        return np.concatenate([mixed[:first], *blocks, mixed[len(mixed) - last :]])
