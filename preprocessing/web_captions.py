"""Conceptual Captions 3M and 12M and SBU: captions of the web, from the official lists and downloaded pictures.

    python -m preprocessing.web_captions data/web --missing skip

    data/web/Train_GCC-training.tsv, Validation_GCC-1.1.0-Validation.tsv     caption, tab, URL
    data/web/cc12m.tsv                                                       URL, tab, caption
    data/web/SBU_captioned_photo_dataset_urls.txt, ..._captions.txt          a line each
    data/web/{cc3m_train,cc3m_val,cc12m_train,sbu_train}/00012/000120034.jpg

Manifests `cc3m/train`, `cc3m/val`, `cc12m/train`, `sbu/train`.

The lists name URLs, many of which are dead: download with img2dataset (`output_format="files"`, 10,000 pictures per
shard, in the order of the list), which gives the folders above, and leave the rest out with `--missing skip`. Its tar
output needs no manifest: use `source: {webdataset: ...}`.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, present, read_lines
from unival.errors import UserError

FILES = {
    "cc3m/train": "Train_GCC-training.tsv",
    "cc3m/val": "Validation_GCC-1.1.0-Validation.tsv",
    "cc12m/train": "cc12m.tsv",
    "sbu/train": "SBU_captioned_photo_dataset_captions.txt",
}
CAPTION_COLUMN = {"cc3m/train": 0, "cc3m/val": 0, "cc12m/train": 1}
HEADER = {"caption", "url"}  # a line that the instructions of img2dataset let people add
SHARD_ROWS = 10_000


def captions(name: str, path: Path) -> Iterator[str]:
    """Yield the captions of a list in its order."""
    for number, line in enumerate(read_lines(path), start=1):
        if name == "sbu/train":
            yield line
            continue
        cells = line.split("\t")
        if number == 1 and {cell.strip().lower() for cell in cells} == HEADER:
            continue
        if len(cells) != 2:
            what = f"{len(cells)} columns, expected caption and URL"
            raise UserError(what, where=f"{path}:{number}", fix="is this the official list?")
        yield cells[CAPTION_COLUMN[name]]


def rows(name: str, path: Path) -> Iterator[Row]:
    """Yield the rows of a list; a picture's file follows from its place in the list."""
    folder = name.replace("/", "_")
    for place, caption in enumerate(captions(name, path)):
        shard, number = divmod(place, SHARD_ROWS)
        picture = f"{folder}/{shard:05d}/{shard:05d}{number:04d}.jpg"
        columns = {"captions": [one_line(caption)], "dataset": name.split("/")[0]}
        yield {"uid": f"{folder}-{place}", "image": picture, **columns}


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    return {name: rows(name, path) for name, path in present(root, FILES).items()}


if __name__ == "__main__":
    main(__doc__, build)
