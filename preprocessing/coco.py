"""COCO captions in Karpathy's split.

    python -m preprocessing.coco data/coco

    data/coco/dataset_coco.json                     from Karpathy's caption_datasets.zip
    data/coco/train2014/COCO_train2014_*.jpg, val2014/COCO_val2014_*.jpg

`coco/train.jsonl` has a row per caption of `train` and `restval` (566,747), as the original trains; `train_images`
a row per picture with all its captions, for rewards and document frequencies; `val` and `test` 5,000 each.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, per_caption, read_json

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    images = read_json(root / "dataset_coco.json")["images"]

    def rows(split: str) -> Iterator[Row]:
        for image in images:
            if image["split"] in SPLITS[split]:
                yield {
                    "uid": str(image["cocoid"]),
                    "image": f"{image['filepath']}/{image['filename']}",
                    "image_id": image["cocoid"],
                    "captions": [one_line(sentence["raw"]) for sentence in image["sentences"]],
                    "dataset": "coco",
                }

    return {
        "coco/train": per_caption(rows("train")),
        "coco/train_images": rows("train"),
        "coco/val": rows("val"),
        "coco/test": rows("test"),
    }


if __name__ == "__main__":
    main(__doc__, build)
