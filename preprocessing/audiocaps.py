"""AudioCaps (Kim et al. 2019): captions of ten-second sounds of AudioSet.

    python -m preprocessing.audiocaps data/audiocaps --missing skip

    data/audiocaps/dataset/{train,val,test}.csv     audiocap_id, youtube_id, start_time, caption
    data/audiocaps/audio/{train,val,test}/YOUTUBE_ID.wav

Other downloads name the files otherwise: `--file "clips/Y{youtube_id}_{start_time}.flac"`, with `{split}` too.
`audiocaps/train` has a row per caption (one per clip), the others a row per clip with five.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, one_line, present, read_csv
from unival.errors import UserError

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
FILE = "audio/{split}/{youtube_id}.wav"


def rows(path: Path, split: str, file: str) -> Iterator[Row]:
    """Yield the clips of a split in the order in which they first occur."""
    clips: dict[tuple[str, str], Row] = {}
    for entry in read_csv(path, COLUMNS):
        key = entry["youtube_id"], entry["start_time"]
        if key not in clips:
            try:
                audio = file.format(split=split, youtube_id=key[0], start_time=key[1])
            except (KeyError, IndexError, ValueError):
                fix = "use only {split}, {youtube_id} and {start_time}"
                raise UserError(f"cannot name files by {file!r}", where="--file", fix=fix) from None
            row = {"uid": f"{key[0]}_{key[1]}", "audio": audio, "audio_id": key[0]}
            clips[key] = row | {"captions": [], "dataset": "audiocaps"}
        clips[key]["captions"].append(one_line(entry["caption"]))
    yield from clips.values()


def build(root: Path, file: str = FILE) -> Manifests:
    """Return the rows of each manifest."""
    files = {split: f"dataset/{split}.csv" for split in ("train", "val", "test")}
    return {f"audiocaps/{split}": rows(path, split, file) for split, path in present(root, files).items()}


if __name__ == "__main__":
    main(__doc__, build, {"--file": {"default": FILE, "help": "where a clip is, relative to the folder"}})
