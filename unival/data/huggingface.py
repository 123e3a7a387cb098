"""Rows of a Hugging Face data set that is already on this machine; nothing is downloaded."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unival.data.fields import MEDIA_COLUMNS, check_row
from unival.errors import UserError, did_you_mean


class HuggingfaceRows:
    """Rows of a `datasets.Dataset`.

    Args:
        name: Folder of `save_to_disk`, folder or file that `load_dataset` reads, or a name in its cache.
        split: Such as `train`; needed where there are several.
        columns: The column of each field; by default columns keep their names.
        limit: Use only the first rows.

    Raises:
        UserError: `datasets` is not installed, the data set is not on this machine, or there is no such column.
    """

    variants = 1

    def __init__(
        self, name: str, split: str | None = None, columns: Mapping[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.name = name if split is None else f"{name}, split {split}"
        data = _undecoded(_load(name, split))
        self.columns = dict(columns) if columns else {column: column for column in data.column_names}
        for column in self.columns.values():
            if column not in data.column_names:
                raise UserError(f"there is no column {column!r}", self.name, did_you_mean(column, data.column_names))
        self.data = data.select_columns(sorted(set(self.columns.values())))
        self.num_rows = min(len(data), limit or len(data))
        if self.num_rows == 0:
            raise UserError("the data set has no rows", where=self.name)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        found = self.data[index]
        row = {field: found[column] for field, column in self.columns.items() if found[column] is not None}
        row["uid"] = str(row.get("uid", index))
        for column in MEDIA_COLUMNS:
            if isinstance(row.get(column), dict):  # an undecoded medium: its bytes, or the path of its file
                row[column] = row[column].get("bytes") or row[column].get("path")
        check_row(row, self.where(index))
        return row

    def where(self, index: int) -> str:
        """Return `data set, row N` of a row."""
        return f"{self.name}, row {index}"


def check_package() -> None:
    """Refuse to go on without the package that reads these data sets."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError("this source needs the package `datasets`", fix='pip install "unival[data]"')


def _load(name: str, split: str | None) -> Any:
    check_package()
    import datasets  # pyright: ignore[reportMissingImports] - an extra

    try:
        if (Path(name) / "dataset_info.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
            data = datasets.load_from_disk(name)
        else:
            with offline(datasets):
                data = datasets.load_dataset(name)
    except Exception as error:  # the package raises whatever its readers raise
        fix = "give a folder on this machine, or download it first with `datasets`"
        raise UserError(f"the data set cannot be opened: {error}", where=name, fix=fix) from None
    if not isinstance(data, datasets.DatasetDict):
        return data
    chosen = split or (next(iter(data)) if len(data) == 1 else "")
    if chosen not in data:
        raise UserError(f"there is no split {chosen!r}", where=name, fix=did_you_mean(chosen, list(data)))
    return data[chosen]


@contextmanager
def offline(datasets: Any) -> Iterator[None]:
    """Keep `datasets` and the hub's client from asking the network: what they read when they are imported, set now."""
    import huggingface_hub.constants as hub

    places = [(datasets.config, "HF_HUB_OFFLINE"), (datasets.config, "HF_DATASETS_OFFLINE"), (hub, "HF_HUB_OFFLINE")]
    before = [(place, name, getattr(place, name)) for place, name in places if hasattr(place, name)]
    try:
        for place, name, _ in before:
            setattr(place, name, True)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _undecoded(data: Any) -> Any:
    """Leave media as bytes or paths: our own loaders check sizes before they decode."""
    for name, feature in list(data.features.items()):
        if hasattr(feature, "decode") and feature.decode:
            feature = type(feature)(decode=False)
            data = data.cast_column(name, feature)
    return data
