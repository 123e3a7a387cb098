"""COCO captions in Karpathy's split.

    python -m preprocessing.coco data/coco
    python -m preprocessing.coco data/coco --instances data/coco/annotations/instances_{train,val}2014.json

    data/coco/dataset_coco.json                     from Karpathy's caption_datasets.zip
    data/coco/train2014/COCO_train2014_*.jpg, val2014/COCO_val2014_*.jpg

`coco/train.jsonl` has a row per caption of `train` and `restval` (566,747), as the original trains; `train_images`
a row per picture with all its captions, for rewards and document frequencies; `val` and `test` 5,000 each. With
`--instances`, rows name the objects in the picture, most frequent first: what `preprocessing.negative_samples` collects
for wrong captions (the original used the labels of a detector).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, per_caption, read_json

SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def objects_of(paths: Sequence[str]) -> dict[int, list[str]]:
    """Return the names of the objects in each picture, by its id; the most frequent first."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for path in paths:
        instances = read_json(Path(path))
        names = {category["id"]: category["name"] for category in instances["categories"]}
        for found in instances["annotations"]:
            counts[found["image_id"]][names[found["category_id"]]] += 1
    return {image: [name for name, _ in each.most_common()] for image, each in counts.items()}


def build(root: Path, instances: Sequence[str] = ()) -> Manifests:
    """Return the rows of each manifest."""
    images, objects = read_json(root / "dataset_coco.json")["images"], objects_of(instances or ())

    def rows(split: str) -> Iterator[Row]:
        for image in images:
            if image["split"] in SPLITS[split]:
                yield {
                    "uid": str(image["cocoid"]),
                    "image": f"{image['filepath']}/{image['filename']}",
                    "image_id": image["cocoid"],
                    "captions": [one_line(sentence["raw"]) for sentence in image["sentences"]],
                    "dataset": "coco",
                    **({"objects": objects[image["cocoid"]]} if image["cocoid"] in objects else {}),
                }

    return {
        "coco/train": per_caption(rows("train")),
        "coco/train_images": rows("train"),
        "coco/val": rows("val"),
        "coco/test": rows("test"),
    }


if __name__ == "__main__":
    main(__doc__, build, {"--instances": {"nargs": "+", "help": "annotations of objects: rows name what is in them"}})
