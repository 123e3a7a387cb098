"""Rows: flat records that tasks turn into examples, from the embedded world or from a data set (`docs/data.md`)."""

from collections.abc import Mapping
from typing import Any, Protocol

from unival.batch import Modality
from unival.data.archive import ArchiveRows
from unival.data.huggingface import HuggingfaceRows
from unival.data.manifest import ManifestRows
from unival.data.table import TableRows
from unival.errors import UserError, did_you_mean
from unival.schema import SourceConfig


class Source(Protocol):
    """Random access to rows. Row `i * variants + k` is the k-th row about medium `i`."""

    variants: int

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row."""
        ...


def open_source(config: SourceConfig, task: str, modality: Modality) -> Source:
    """Open the rows of a task.

    Raises:
        UserError: If the data set is missing or malformed, or the world has no such content or style.
    """
    if config.world is None:
        return open_rows(config)
    from unival.data.world_rows import CONTENTS, WorldRows

    content = config.content or task
    if (modality, content) not in CONTENTS:
        known = [c for m, c in CONTENTS if m == modality]
        raise UserError(f"the embedded world has no {modality} rows for {content!r}", fix=did_you_mean(content, known))
    styles = tuple(config.styles) if config.styles else None
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in config.options.items()}
    return WorldRows(content, modality, config.world, styles, config.limit, tuple(sorted(options.items())))


def open_rows(config: SourceConfig) -> Source:
    """Open a data set that is stored in one of the four forms.

    Raises:
        UserError: If it is missing or malformed, or `columns` does not fit its form.
    """
    if config.tsv is not None:
        columns = config.columns or "caption"
        if isinstance(columns, dict):
            columns = _values(columns, int, "column numbers from 0")
        return TableRows(config.tsv, columns, config.limit, config.media_root)
    if config.manifest is not None:
        return ManifestRows(config.manifest, config.limit, config.media_root)
    if config.columns is not None and not isinstance(config.columns, dict):
        raise UserError("`columns` must give the column of each field", fix="columns: {caption: text}")
    names = None if config.columns is None else _values(config.columns, str, "names")
    if config.webdataset is not None:
        return ArchiveRows(config.webdataset, names, config.limit)
    assert config.huggingface is not None
    return HuggingfaceRows(config.huggingface, config.split, names, config.limit)


def _values(columns: Mapping[str, Any], kind: type, meaning: str) -> dict[str, Any]:
    for field, value in columns.items():
        if not isinstance(value, kind):
            raise UserError(f"columns.{field}: {value!r} is wrong here", fix=f"this source has {meaning}")
    return dict(columns)


def row_name(source: Source, index: int) -> str:
    """Return where a row stands, for messages: `file:line` where the source knows it."""
    where = getattr(source, "where", None)
    return f"row {index}" if where is None else where(index)
