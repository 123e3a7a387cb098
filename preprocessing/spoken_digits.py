"""Free Spoken Digit Dataset: which digit is said, and by whom.

    python -m preprocessing.spoken_digits data/fsdd

    data/fsdd/meta.csv          file, digit, speaker, index
    data/fsdd/audio/*.flac

Takes 0 to 4 of each speaker and digit are the official test part. `fsdd/{train,test}` have a caption ("the number
seven, spoken by theo") and `fsdd_qa/{train,test}` two questions per recording. `--hold-out SPEAKER` trains on the
others and tests on all recordings of that one.
"""

from collections.abc import Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, read_csv
from unival.errors import UserError, did_you_mean

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_TEST_TAKES = 5


def recordings(path: Path, is_test: bool, hold_out: str | None) -> Iterator[Row]:
    """Yield the recordings of a part."""
    for entry in read_csv(path, ("file", "digit", "speaker", "index")):
        held = int(entry["index"]) < NUM_TEST_TAKES if hold_out is None else entry["speaker"] == hold_out
        if held == is_test:
            word = WORDS[int(entry["digit"])]
            captions = [f"the number {word}, spoken by {entry['speaker']}", f"{entry['speaker']} says {word}"]
            row = {"uid": Path(entry["file"]).stem, "audio": entry["file"], "captions": captions}
            yield row | {"digit": word, "speaker": entry["speaker"], "dataset": "fsdd"}


def questions(path: Path, is_test: bool, hold_out: str | None) -> Iterator[Row]:
    """Yield the question for the digit, and for the speaker where that can be known."""
    for row in recordings(path, is_test, hold_out):
        asked = [("which digit is said?", row["digit"], "digit"), ("who is speaking?", row["speaker"], "speaker")]
        for question, answer, question_type in asked[: 1 if hold_out else 2]:
            columns = {"uid": f"{row['uid']}-{question_type}", "audio": row["audio"], "dataset": "fsdd"}
            yield columns | {"question": question, "answers": [answer], "question_type": question_type}


def build(root: Path, hold_out: str | None = None) -> Manifests:
    """Return the rows of each manifest."""
    path = root / "meta.csv"
    speakers = {entry["speaker"] for entry in read_csv(path, ("speaker",))}
    if hold_out is not None and hold_out not in speakers:
        raise UserError(f"no speaker {hold_out!r}", where=str(path), fix=did_you_mean(hold_out, speakers))
    parts = {"train": False, "test": True}
    manifests = {f"fsdd/{part}": recordings(path, is_test, hold_out) for part, is_test in parts.items()}
    return manifests | {f"fsdd_qa/{part}": questions(path, is_test, hold_out) for part, is_test in parts.items()}


if __name__ == "__main__":
    main(__doc__, build, {"--hold-out": {"metavar": "SPEAKER", "help": "test on this speaker only"}})
