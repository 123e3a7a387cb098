"""ActivityNet Captions (Krishna et al. 2017): a row per described segment (ground-truth proposals).

    python -m preprocessing.activitynet data/activitynet --missing ignore
    python -m preprocessing.compress_videos data/activitynet --segments data/activitynet/train.jsonl ...

    data/activitynet/{train,val_1,val_2}.json       duration, timestamps and sentences of each video
    data/activitynet/videos/v_*.mp4                 whole videos

A row's `video` is the segment `clips/v_X-3.mp4`, which the second command cuts out of its `source` at `timestamp`
(seconds). Manifests `activitynet/train`, `val` (the official val_1) and `test` (val_2, which the paper reports).
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, present, read_json


def rows(path: Path) -> Iterator[Row]:
    """Yield the segments of a file; times are clipped to the video, and a segment without length is left out."""
    for name, entry in read_json(path).items():
        for number, (times, sentence) in enumerate(zip(entry["timestamps"], entry["sentences"], strict=True)):
            start, end = max(min(times), 0.0), min(max(times), entry["duration"])
            if end > start:
                yield {
                    "uid": f"{name}-{number}",
                    "video": f"clips/{name}-{number}.mp4",
                    "source": f"videos/{name}.mp4",
                    "video_id": name,
                    "timestamp": [start, end],
                    "captions": [one_line(sentence)],
                    "dataset": "activitynet",
                }


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    files = {"train": "train.json", "val": "val_1.json", "test": "val_2.json"}
    return {f"activitynet/{split}": rows(path) for split, path in present(root, files).items()}


if __name__ == "__main__":
    main(__doc__, build)
