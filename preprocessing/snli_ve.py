"""SNLI-VE (Xie et al. 2019): does a picture of Flickr30k entail a hypothesis?

    python -m preprocessing.snli_ve data/flickr30k

    data/flickr30k/snli_ve_{train,dev,test}.jsonl
    data/flickr30k/flickr30k-images/*.jpg

Manifests `snli_ve/{train,dev,test}`. `premise` is the caption.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, present, read_json_lines
from unival.data.fields import LABELS
from unival.errors import UserError, did_you_mean


def rows(path: Path) -> Iterator[Row]:
    """Yield the statements of a split; pairs on which the annotators did not agree ("-") are left out."""
    for entry in read_json_lines(path):
        gold = entry["gold_label"]
        if gold == "-":
            continue
        if gold not in LABELS:
            where = f"{path}: {entry['pairID']}"
            raise UserError(f"unknown label {gold!r}", where=where, fix=did_you_mean(gold, LABELS))
        yield {
            "uid": entry["pairID"],
            "image": f"flickr30k-images/{entry['Flickr30K_ID']}.jpg",
            "image_id": entry["Flickr30K_ID"],
            "text": entry["sentence2"],
            "premise": entry["sentence1"],
            "label": LABELS[gold],
            "dataset": "snli_ve",
        }


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    files = {split: f"snli_ve_{split}.jsonl" for split in ("train", "dev", "test")}
    return {f"snli_ve/{split}": rows(path) for split, path in present(root, files).items()}


if __name__ == "__main__":
    main(__doc__, build)
