"""MSR-VTT (Xu et al. 2016) captions and MSRVTT-QA (Xu et al. 2017).

    python -m preprocessing.msrvtt data/msrvtt

    data/msrvtt/train_val_videodatainfo.json, test_videodatainfo.json        captions
    data/msrvtt/{train,val,test}_qa.json                                     questions
    data/msrvtt/videos/video0.mp4 ... video9999.mp4                          or those of compress_videos

`msrvtt/train` has a row per caption, `train_videos`, `val` and `test` a row per clip (6,513, 497 and 2,990) with its 20
captions; `msrvtt_qa/{train,val,test}` the questions.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, per_caption, present, read_json

CAPTION_FILES = {"train": "train_val_videodatainfo.json", "test": "test_videodatainfo.json"}
SPLITS = {"train": ("train", "train"), "val": ("train", "validate"), "test": ("test", "test")}
QA_FILES = {f"msrvtt_qa/{split}": f"{split}_qa.json" for split in ("train", "val", "test")}


def clips(path: Path, split: str) -> Iterator[Row]:
    """Yield the clips of a split."""
    data = read_json(path)
    captions: dict[str, list[str]] = defaultdict(list)
    for sentence in data["sentences"]:
        captions[sentence["video_id"]].append(one_line(sentence["caption"]))
    for video in data["videos"]:
        if video["split"] == split:
            name = video["video_id"]
            row = {"uid": name, "video": f"videos/{name}.mp4", "video_id": name}
            yield row | {"captions": captions[name], "dataset": "msrvtt"}


def questions(path: Path) -> Iterator[Row]:
    """Yield the questions of a split."""
    for entry in read_json(path):
        yield {
            "uid": str(entry["id"]),
            "video": f"videos/video{entry['video_id']}.mp4",
            "video_id": f"video{entry['video_id']}",
            "question_id": entry["id"],
            "question": entry["question"],
            "answers": [entry["answer"]],
            "dataset": "msrvtt_qa",
        }


def build(root: Path) -> Manifests:
    """Return the rows of each manifest."""
    found = present(root, CAPTION_FILES | QA_FILES)
    manifests = {f"msrvtt/{split}": clips(found[file], name) for split, (file, name) in SPLITS.items() if file in found}
    if "msrvtt/train" in manifests:
        manifests["msrvtt/train_videos"] = clips(found["train"], "train")
        manifests["msrvtt/train"] = per_caption(manifests["msrvtt/train"])
    return manifests | {name: questions(found[name]) for name in QA_FILES if name in found}


if __name__ == "__main__":
    main(__doc__, build)
