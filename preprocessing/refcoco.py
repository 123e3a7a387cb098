"""RefCOCO, RefCOCO+ and RefCOCOg (Kazemzadeh et al. 2014, Yu et al. 2016, Mao et al. 2016): a row per expression.

    python -m preprocessing.refcoco data/coco

    data/coco/refcoco/refs(unc).p      with refcoco/instances.json
    data/coco/refcoco+/refs(unc).p     with refcoco+/instances.json
    data/coco/refcocog/refs(umd).p     with refcocog/instances.json; refs(google).p is read too
    data/coco/train2014/COCO_train2014_*.jpg

Manifests `refcoco/{train,val,testA,testB}`, `refcocoplus/...`, `refcocog/{train,val,test}`, `refcocog_google/...`. The
`.p` files are pickles of Python 2; they are read as data, nothing in them is run.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.official import Manifests, Row, main, one_line, present, read_json, read_pickle
from unival.errors import UserError

FILES = {
    "refcoco": "refcoco/refs(unc).p",
    "refcocoplus": "refcoco+/refs(unc).p",
    "refcocog": "refcocog/refs(umd).p",
    "refcocog_google": "refcocog/refs(google).p",
}
OBJECT_NUMBER = re.compile(r"_\d+(?=\.jpg$)")  # COCO_train2014_000000581857_16.jpg


def utf8(text: str) -> str:
    """Undo how texts of Python 2 are read: its bytes, one character each."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def rows(name: str, refs: list[Any], instances: Any, split: str) -> Iterator[Row]:
    """Yield the expressions of a split; a box is [x0, y0, x1, y1]."""
    images = {image["id"]: image for image in instances["images"]}
    boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    for ref in (ref for ref in refs if ref["split"] == split):
        if ref["ann_id"] not in boxes or ref["image_id"] not in images:
            what = f"ref {ref['ref_id']} names an object that instances.json does not have"
            raise UserError(what, where=name, fix="use the instances.json that came with this refs file")
        x, y, width, height = boxes[ref["ann_id"]]
        image = images[ref["image_id"]]
        for sentence in ref["sentences"]:
            yield {
                "uid": str(sentence["sent_id"]),
                "image": f"train2014/{OBJECT_NUMBER.sub('', ref['file_name'])}",
                "image_id": ref["image_id"],
                "text": one_line(utf8(sentence["sent"])),
                "box": [x, y, x + width, y + height],
                "width": image["width"],
                "height": image["height"],
                "dataset": name,
            }


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    manifests: dict[str, Iterator[Row]] = {}
    for name, path in present(root, FILES).items():
        refs, instances = read_pickle(path), read_json(path.parent / "instances.json")
        try:
            splits = sorted({ref["split"] for ref in refs})
        except (TypeError, KeyError):
            raise UserError("not a list of referring expressions", where=str(path)) from None
        manifests |= {f"{name}/{split}": rows(name, refs, instances, split) for split in splits}
    return manifests


if __name__ == "__main__":
    main(__doc__, build)
