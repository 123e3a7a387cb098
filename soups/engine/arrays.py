"""Stored entries as numpy arrays: what adding models up needs of torch, without its seconds and 270 MB of import.

Values are widened to float64 and rounded once, as `soups.methods` does with tensors, to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
DTYPES = (*FLOATS, "BF16")  # the dtypes that can be widened here
QUIET_NAN = np.uint16(0x7FC0)


@dataclass(frozen=True)
class Raw:
    """Entries as they are stored: bytes (uint8, flat), and their dtype, under its name in safetensors."""

    data: NDArray[np.uint8]
    dtype: str
    item_bytes: int

    def __getitem__(self, entries: slice) -> Raw:
        """Return some of the entries."""
        return Raw(
            self.data[entries.start * self.item_bytes : entries.stop * self.item_bytes], self.dtype, self.item_bytes
        )

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.data) // self.item_bytes

    def widen(self) -> Wide:
        """Return the values, in new memory."""
        with np.errstate(all="ignore"):  # NaNs are values like others
            if self.dtype == "BF16":  # the upper half of a float32
                return (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            return self.data.view(FLOATS[self.dtype]).astype(np.float64)

    def store(self, values: Wide) -> None:
        """Write values, rounded to the nearest, to even where two are as near; overflow becomes infinity."""
        with np.errstate(all="ignore"):
            if self.dtype == "BF16":
                self.data.view(np.uint16)[:] = _bfloat16(values.astype(np.float32))
            elif self.dtype == "F16":  # torch rounds by way of float32
                self.data.view(np.float16)[:] = values.astype(np.float32)
            else:
                self.data.view(FLOATS[self.dtype])[:] = values


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    # Half of the last place that is kept, less one where that place is even.
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), QUIET_NAN, rounded)
