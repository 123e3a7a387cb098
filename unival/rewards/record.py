"""What every reward reads: task rows by field, and what it returns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unival.errors import UserError
from unival.metrics.score import check_pairs

Record = Mapping[str, Any]
Rewards = NDArray[np.float64]
Reward = Callable[[Sequence[Any], Sequence[Record]], Rewards]  # predictions: strings; boxes and codes also as numbers


def captions(predictions: Sequence[object], records: Sequence[Record]) -> list[list[str]]:
    """Return the references of each record."""
    check_pairs(predictions, records, "records")
    return [captions_of(record) for record in records]


def captions_of(record: Record) -> list[str]:
    """Read "captions", else the single "caption"."""
    return list(record["captions"]) if "captions" in record else [field(record, "caption")]


def texts_of(record: Record, key: str) -> list[str]:
    """Read one text or several; of "captions" also the single "caption"."""
    if key == "captions":
        return captions_of(record)
    value = field(record, key)
    return [value] if isinstance(value, str) else list(value)


def fields(predictions: Sequence[object], records: Sequence[Record], key: str) -> list[Any]:
    """Return one field of each record."""
    check_pairs(predictions, records, "records")
    return [field(record, key) for record in records]


def field(record: Record, key: str) -> Any:
    """Return a field.

    Raises:
        UserError: There is none; the message lists those that are there.
    """
    if key not in record:
        fix = f"it has {', '.join(map(repr, record)) or 'nothing'}"
        raise UserError(f"record has no {key!r}", where=f"record {record.get('uid', '?')}", fix=fix)
    return record[key]


def array(values: Any) -> Rewards:
    """Return values as one float64 per sample."""
    return np.array(list(values), dtype=np.float64)


def empty() -> Rewards:
    """Return the rewards of no samples."""
    return np.zeros(0)
