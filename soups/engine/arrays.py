"""Stored entries as numpy arrays: what adding models up needs of torch, without its seconds and 270 MB of import.

Values are widened to float64 and rounded once, as `soups.methods` does with tensors, to the same bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soups.engine.infinities import has_nan, keep_equal

Wide = NDArray[np.float64]
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
DTYPES = (*FLOATS, "BF16")  # the dtypes that can be widened here
QUIET_NAN = np.uint16(0x7FC0)
EXPONENTS = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}  # all of these bits are set in infinities and NaNs


def quiet() -> np.errstate:
    """Return a context in which numpy does not warn: infinities and NaNs are values like others."""
    return np.errstate(all="ignore")


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

    def widen(self, out: Wide | None = None) -> Wide:
        """Return the values, in ``out`` or in new memory."""
        wide = np.empty(len(self)) if out is None else out
        with quiet():
            if self.dtype == "BF16":  # the upper half of a float32
                bits = reused("bits", 4 * len(self)).view(np.uint32)
                bits[:] = self.data.view(np.uint16)
                bits <<= 16
                wide[:] = bits.view(np.float32)
            else:
                wide[:] = self.data.view(FLOATS[self.dtype])
        return wide

    def store(self, values: Wide) -> None:
        """Write values, rounded to the nearest, to even where two are as near; overflow becomes infinity."""
        with quiet():
            if self.dtype == "F64" or self.dtype == "F32":
                self.data.view(FLOATS[self.dtype])[:] = values
                return
            single = reused("single", 4 * len(values)).view(np.float32)  # torch rounds by way of float32
            single[:] = values
            if self.dtype == "F16":
                self.data.view(np.float16)[:] = single
            else:
                _round_bfloat16(self.data.view(np.uint16), single)


def _round_bfloat16(out: NDArray[np.uint16], values: NDArray[np.float32]) -> None:
    bits, rounded = values.view(np.uint32), reused("bits", values.nbytes).view(np.uint32)
    # Half of the last place that is kept, less one where that place is even.
    np.right_shift(bits, 16, out=rounded)
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    out[:] = rounded
    is_nan = np.isnan(values)
    if is_nan.any():
        out[is_nan] = QUIET_NAN


def add_up(out: Raw, inputs: Sequence[Raw], weights: Sequence[float]) -> None:
    """Write the sum of the inputs, each times its weight, into ``out``; inputs without weight are not read.

    Products and sums are rounded apart, as those of the operators are, but no memory is allocated.
    """
    used = [(part, weight) for part, weight in zip(inputs, weights, strict=True) if weight != 0]  # 0 * inf is NaN
    total, term = (reused(name, 8 * len(out)).view(np.float64) for name in ("total", "term"))
    if not used:
        total[:] = 0
    with quiet():
        for number, (part, weight) in enumerate(used):
            product = part.widen(term if number else total)
            product *= weight
            if number:
                total += term
        if min(weights) < 0 and has_nan(total):  # else infinities of one sign add up to themselves
            keep_equal(total, [part.widen() for part in inputs], weights)
    out.store(total)


def num_not_finite(data: NDArray[np.uint8], dtype: str) -> int:
    """Return how many entries are infinite or no numbers; of dtypes that cannot be widened here, none."""
    if dtype not in DTYPES:
        return 0
    if dtype in EXPONENTS:  # numpy knows no BF16, and isfinite takes ten times as long for F16
        bits = EXPONENTS[dtype]
        return int(np.count_nonzero((data.view(np.uint16) & bits) == bits))
    return len(data) // np.dtype(FLOATS[dtype]).itemsize - int(np.count_nonzero(np.isfinite(data.view(FLOATS[dtype]))))


_kept = threading.local()


def reused(name: Hashable, num_bytes: int) -> NDArray[np.uint8]:
    """Return bytes that the next call of this thread with this name gets again: fresh memory costs page faults."""
    kept: dict[Any, NDArray[np.uint8]] = _kept.__dict__
    if name not in kept or len(kept[name]) < num_bytes:
        kept[name] = np.empty(num_bytes, dtype=np.uint8)
    return kept[name][:num_bytes]
