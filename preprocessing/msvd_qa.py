"""MSVD-QA (Xu et al. 2017): questions about short YouTube clips.

    python -m preprocessing.msvd_qa data/msvd

    data/msvd/{train,val,test}_qa.json
    data/msvd/youtube_mapping.txt           "-4wsuPCjDBc_5_15 vid1": file name, number in the JSON files
    data/msvd/YouTubeClips/*.avi

Manifests `msvd_qa/{train,val,test}`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from preprocessing.official import Manifests, Row, main, present, read_json, read_lines
from unival.errors import UserError


def names_by_number(path: Path) -> dict[str, str]:
    """Return the clips' file names by "vid1", "vid2", ..."""
    names = {}
    for number, line in enumerate(read_lines(path), start=1):
        parts = line.split()
        if len(parts) != 2:
            raise UserError(f"expected a file name and a number, got {line!r}", where=f"{path}:{number}")
        names[parts[1]] = parts[0]
    return names


def rows(path: Path, split: str, names: Mapping[str, str]) -> Iterator[Row]:
    """Yield the questions of a split; ids are unique within it only."""
    for entry in read_json(path):
        name = names.get(f"vid{entry['video_id']}")
        if name is None:
            raise UserError(f"youtube_mapping.txt has no vid{entry['video_id']}", where=str(path))
        yield {
            "uid": f"{split}-{entry['id']}",
            "video": f"YouTubeClips/{name}.avi",
            "video_id": name,
            "question_id": entry["id"],
            "question": entry["question"],
            "answers": [entry["answer"]],
            "dataset": "msvd_qa",
        }


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    found = present(root, {split: f"{split}_qa.json" for split in ("train", "val", "test")})
    names = names_by_number(root / "youtube_mapping.txt")
    return {f"msvd_qa/{split}": rows(path, split, names) for split, path in found.items()}


if __name__ == "__main__":
    main(__doc__, build)
