"""Where the bytes of a stored tensor are: what every reader of checkpoint headers returns, for every format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from soups.errors import UserError

# The dtypes that are understood, under their names in safetensors and in torch, with the bytes of an item.
DTYPES: dict[str, tuple[str, int]] = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile put these before every name
ITEM_BYTES = {name: size for name, (_, size) in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about one tensor.

    Attributes:
        dtype: a key of ``DTYPES``.
        shape: the sizes.
        path: the file that holds it.
        offset: where its first entry starts, in bytes from the start of the file.
        strides: in entries, if the tensor is not stored contiguously.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int = 0
    strides: tuple[int, ...] | None = None

    @property
    def is_float(self) -> bool:
        """Say whether the tensor can be interpolated; integers and booleans cannot."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def num_elements(self) -> int:
        """Return the number of entries."""
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Return the size in bytes."""
        return self.num_elements * ITEM_BYTES[self.dtype]

    @property
    def extent(self) -> int:
        """Return the bytes from the first to the last entry in the file; more than the size if strided."""
        if self.strides is None or self.num_elements == 0:
            return self.num_bytes
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def packed_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in entries."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def corrupt(path: Path, why: str) -> UserError:
    """Return the error for a file that is cut off or damaged."""
    return UserError(f"truncated or corrupt weights: {why}", where=str(path), fix="copy or download the file again")


def wrapped(names: Collection[str]) -> int:
    """Return how many letters of every name come from what a training put around the model, in any order."""
    cut = 0
    while names and (found := next((w for w in WRAPPERS if all(n.startswith(w, cut) for n in names)), "")):
        cut += len(found)
    return cut
