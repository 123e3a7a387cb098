"""VizWiz-VQA (Gurari et al. 2018): questions that blind people asked about their photographs.

    python -m preprocessing.vizwiz data/vizwiz

    data/vizwiz/Annotations/{train,val,test}.json   ten answers each; none for test
    data/vizwiz/{train,val,test}/VizWiz_*.jpg

`image_id` is the file name, which the server asks for.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, present, read_json


def rows(split: str, path: Path) -> Iterator[Row]:
    """Yield the questions of a split."""
    for entry in read_json(path):
        row = {
            "uid": entry["image"],
            "image": f"{split}/{entry['image']}",
            "image_id": entry["image"],
            "question": one_line(entry["question"]),
            "dataset": "vizwiz",
        }
        if "answers" in entry:
            given = [answer["answer"] for answer in entry["answers"]]
            best = max(given, key=given.count)
            row |= {"answers": sorted(given, key=lambda answer: answer != best), "answer_type": entry["answer_type"]}
            row["answerable"] = entry["answerable"]
        yield row


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    files = {split: f"Annotations/{split}.json" for split in ("train", "val", "test")}
    return {f"vizwiz/{split}": rows(split, path) for split, path in present(root, files).items()}


if __name__ == "__main__":
    main(__doc__, build)
