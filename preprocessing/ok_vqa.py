"""OK-VQA (Marino et al. 2019): questions that need outside knowledge, on COCO pictures.

    python -m preprocessing.ok_vqa data/coco

    data/coco/OpenEnded_mscoco_{train2014,val2014}_questions.json
    data/coco/mscoco_{train2014,val2014}_annotations.json           ten answers each, stemmed by the authors
    data/coco/train2014/COCO_train2014_*.jpg, val2014/COCO_val2014_*.jpg

Manifests `okvqa/train` and `okvqa/val`.
"""

from pathlib import Path

from preprocessing.official import Manifests, main, present
from preprocessing.vqa_v2 import rows

PARTS = {"train": "train2014", "val": "val2014"}


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    files = {split: f"OpenEnded_mscoco_{part}_questions.json" for split, part in PARTS.items()}
    return {
        f"okvqa/{split}": rows(path, root / f"mscoco_{PARTS[split]}_annotations.json", PARTS[split], "okvqa")
        for split, path in present(root, files).items()
    }


if __name__ == "__main__":
    main(__doc__, build)
