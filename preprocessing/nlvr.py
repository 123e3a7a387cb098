"""NLVR (Suhr et al. 2017), development and test parts: human statements about drawings, and boxes of every shape.

    python -m preprocessing.nlvr data/nlvr

    data/nlvr/{dev,test}.jsonl      {"identifier", "sentence", "label", "image", "boxes"}, one layout per statement
    data/nlvr/images/*.png

`nlvr/train` is dev, cut by the number that statements on related pictures share: a fifth of the numbers is
`val`. `nlvr/test` is test, `test_new` the part of it whose sentence does not occur in dev. `nlvr_grounding/*`
asks for shapes that their size, colour, form and box single out ("the blue circle in the left box").
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from preprocessing.official import Manifests, Row, main, one_line, read_json_lines

BOXES = ("left", "middle", "right")
SIDE_PX = (400, 100)


def statements(entries: list[Row]) -> Iterator[Row]:
    """Yield one row per statement."""
    for entry in entries:
        columns = {"uid": entry["identifier"], "image": entry["image"], "dataset": "nlvr"}
        yield columns | {"text": one_line(entry["sentence"]), "label": "yes" if is_true(entry) else "no"}


def is_true(entry: Row) -> bool:
    """Return the label, which the official files write as text."""
    return entry["label"] in (True, "true")


def shapes(entries: list[Row]) -> Iterator[Row]:
    """Yield one row per shape that a phrase singles out."""
    for entry in entries:
        names = [f"the {b['color']} {b['shape']} in the {BOXES[b['box']]} box" for b in entry["boxes"]]
        counts = Counter(names)
        for number, (name, box) in enumerate(zip(names, entry["boxes"], strict=True)):
            if counts[name] == 1:
                x, y = float(box["x"]), float(box["y"])
                yield {
                    "uid": f"{entry['identifier']}-{number}",
                    "image": entry["image"],
                    "text": name,
                    "box": [x, y, x + box["w"], y + box["h"]],
                    "width": SIDE_PX[0],
                    "height": SIDE_PX[1],
                    "dataset": "nlvr",
                }


def is_validation(entry: Row) -> bool:
    """Tell whether a statement of dev is for validation."""
    return crc32(entry["identifier"].split("-")[0].encode()) % 5 == 0


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    dev, test = list(read_json_lines(root / "dev.jsonl")), list(read_json_lines(root / "test.jsonl"))
    seen = {one_line(entry["sentence"]) for entry in dev}
    parts = {
        "train": [entry for entry in dev if not is_validation(entry)],
        "val": [entry for entry in dev if is_validation(entry)],
        "test": test,
        "test_new": [entry for entry in test if one_line(entry["sentence"]) not in seen],
    }
    manifests = {f"nlvr/{split}": statements(entries) for split, entries in parts.items()}
    return manifests | {f"nlvr_grounding/{s}": shapes(entries) for s, entries in parts.items() if s != "test_new"}


if __name__ == "__main__":
    main(__doc__, build)
