"""WebVid-2M captions (Bain et al. 2021) and WebVidQA, questions generated from them (Yang et al. 2022).

    python -m preprocessing.webvid data/webvid --missing skip

    data/webvid/results_2M_{train,val}.csv      videoid, contentUrl, duration, page_dir, name
    data/webvid/webvidvqa.pkl                   optional: {videoid: {"question": [...], "answer": [...]}}
    data/webvid/videos/PAGE_DIR/VIDEOID.mp4     as the official downloader stores them

The pickle is read as data, nothing in it is run; it takes some minutes and about 4 GB.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocessing.official import Manifests, Row, main, one_line, present, read_csv, read_pickle

COLUMNS = ("videoid", "page_dir", "name")


def captions(path: Path) -> Iterator[Row]:
    """Yield the videos of a list with their captions."""
    for entry in read_csv(path, COLUMNS):
        name = entry["videoid"]
        row = {"uid": name, "video": f"videos/{entry['page_dir']}/{name}.mp4", "video_id": name}
        yield row | {"captions": [one_line(entry["name"])], "dataset": "webvid"}


def questions(path: Path, generated: dict[Any, Any]) -> Iterator[Row]:
    """Yield the questions about the videos of a list; of several wordings of one question the first counts."""
    for row in captions(path):
        entry = generated.get(row["uid"], {"question": [], "answer": []})
        for number, (question, answer) in enumerate(zip(entry["question"], entry["answer"], strict=True)):
            text = question[0] if isinstance(question, list) else question
            columns = {"uid": f"{row['uid']}-{number}", "question": one_line(text), "answers": [one_line(answer)]}
            yield {"video": row["video"], "video_id": row["video_id"], "dataset": "webvid_qa"} | columns


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    found = present(root, {split: f"results_2M_{split}.csv" for split in ("train", "val")})
    manifests = {f"webvid/{split}": captions(path) for split, path in found.items()}
    if (root / "webvidvqa.pkl").is_file():
        generated = {str(name): entry for name, entry in read_pickle(root / "webvidvqa.pkl").items()}
        manifests |= {f"webvid_qa/{split}": questions(path, generated) for split, path in found.items()}
    return manifests


if __name__ == "__main__":
    main(__doc__, build)
