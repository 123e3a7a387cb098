"""Clotho (Drossos et al. 2020), version 1 or 2: sounds of 15 to 30 s with five captions.

    python -m preprocessing.clotho data/clotho

    data/clotho/clotho_captions_{development,validation,evaluation}.csv      validation is new in version 2
    data/clotho/{development,validation,evaluation}/*.wav

`clotho/train` (development) has a row per caption; `train_clips`, `val` (validation) and `test` (evaluation) a row per
clip. `audio_id` is the file name, which the DCASE challenge asks for.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, per_caption, present, read_csv

CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def rows(path: Path, split: str) -> Iterator[Row]:
    """Yield the clips of a split."""
    for entry in read_csv(path, ("file_name", *CAPTIONS)):
        name = entry["file_name"]
        row = {"uid": f"{split}/{name}", "audio": f"{split}/{name}", "audio_id": name}
        yield row | {"captions": [one_line(entry[column]) for column in CAPTIONS], "dataset": "clotho"}


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    splits = {"train": "development", "val": "validation", "test": "evaluation"}
    found = present(root, {split: f"clotho_captions_{name}.csv" for split, name in splits.items()})
    manifests = {f"clotho/{split}": rows(path, splits[split]) for split, path in found.items()}
    if "train" in found:
        manifests["clotho/train"] = per_caption(manifests["clotho/train"])
        manifests["clotho/train_clips"] = rows(found["train"], "development")
    return manifests


if __name__ == "__main__":
    main(__doc__, build)
