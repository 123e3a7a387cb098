"""GQA (Hudson and Manning 2019): compositional questions on Visual Genome pictures, one answer each.

    python -m preprocessing.gqa data/gqa

    data/gqa/{train,val,testdev}_balanced_questions.json, submission_all_questions.json
    data/gqa/train_all_questions/train_all_questions_*.json, {val,testdev}_all_questions.json   optional
    data/gqa/images/*.jpg

A manifest for each of them: `gqa/train_balanced`, ..., `gqa/submission_all` (no answers).
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, present, read_json

FILES = {
    **{f"{split}_balanced": f"{split}_balanced_questions.json" for split in ("train", "val", "testdev")},
    "train_all": "train_all_questions",
    **{f"{split}_all": f"{split}_all_questions.json" for split in ("val", "testdev", "submission")},
}


def rows(path: Path) -> Iterator[Row]:
    """Yield the questions of a file, or of all files of a folder."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        for question_id, entry in read_json(file).items():
            row = {
                "uid": question_id,
                "image": f"images/{entry['imageId']}.jpg",
                "image_id": entry["imageId"],
                "question_id": question_id,
                "question": entry["question"],
                "dataset": "gqa",
            }
            if "answer" in entry:
                row |= {"answers": [entry["answer"]], "question_type": entry["types"]["structural"]}
            yield row


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    return {f"gqa/{name}": rows(path) for name, path in present(root, FILES).items()}


if __name__ == "__main__":
    main(__doc__, build)
