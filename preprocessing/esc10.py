"""ESC-10 (Piczak 2015), folds 1 to 3: everyday sounds with captions and questions.

    python -m preprocessing.esc10 data/esc10

    data/esc10/meta.csv         file, fold, label
    data/esc10/audio/*.ogg      five seconds each, ten classes

Training on folds 1 and 2, test on fold 3 (`--test-fold` rotates): clips of one recording share a fold. The captions
are four or five wordings of the label, the first of which varies; `esc10_qa/*` ask what is heard, and whether it is of
one kind.
"""

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

from preprocessing.official import Manifests, Row, main, read_csv
from unival.errors import UserError, did_you_mean

CAPTIONS = {
    "baby cry": "a baby is crying|a crying baby|an infant cries loudly|the cry of a baby|a small child is crying",
    "chainsaw": "a chainsaw is running|a running chainsaw|someone saws with a chainsaw|the noise of a chainsaw",
    "clock tick": "a clock is ticking|a ticking clock|the ticking of a clock|a clock ticks steadily",
    "dog bark": "a dog is barking|a barking dog|the barking of a dog|a dog barks|the bark of a dog",
    "fire crackling": "a fire is crackling|a crackling fire|the crackling of a fire|wood crackles in a fire",
    "helicopter": "a helicopter is flying|a flying helicopter|the noise of a helicopter|a helicopter passes by",
    "person sneeze": "a person is sneezing|a sneezing person|the sneeze of a person|someone sneezes",
    "rain": "rain is falling|falling rain|the sound of rain|it is raining|drops of rain fall on the ground",
    "rooster": "a rooster is crowing|a crowing rooster|the crow of a rooster|a rooster crows",
    "sea waves": "waves are breaking|breaking waves|the sound of sea waves|waves roll onto a beach",
}
KINDS = {
    "an animal": {"dog bark", "rooster"},
    "a person": {"baby cry", "person sneeze"},
    "a machine": {"chainsaw", "clock tick", "helicopter"},
    "water": {"rain", "sea waves"},
}


def clips(path: Path, folds: set[str]) -> Iterator[Row]:
    """Yield the clips of some folds with their captions; which one comes first follows from the file name."""
    for entry in read_csv(path, ("file", "fold", "label")):
        if entry["label"] not in CAPTIONS:
            raise UserError(f"unknown label {entry['label']!r}", str(path), did_you_mean(entry["label"], CAPTIONS))
        if entry["fold"] in folds:
            texts = CAPTIONS[entry["label"]].split("|")
            turn = crc32(entry["file"].encode()) % len(texts)
            row = {"uid": Path(entry["file"]).stem, "audio": entry["file"], "captions": texts[turn:] + texts[:turn]}
            yield row | {"label_name": entry["label"], "dataset": "esc10"}


def questions(path: Path, folds: set[str]) -> Iterator[Row]:
    """Yield two questions per clip: its label, and yes or no about a kind of source, evenly."""
    for row in clips(path, folds):
        label = row["label_name"]
        own = next((kind for kind, labels in KINDS.items() if label in labels), None)
        others = [kind for kind in KINDS if kind != own]
        draw = crc32(row["uid"].encode())
        kind = own if own is not None and draw % 2 else others[draw // 2 % len(others)]
        yes = "yes" if kind == own else "no"
        asked = [("what is heard?", label, "what"), (f"is this the sound of {kind}?", yes, "yesno")]
        for number, (question, answer, question_type) in enumerate(asked):
            columns = {"uid": f"{row['uid']}-{number}", "audio": row["audio"], "dataset": "esc10"}
            yield columns | {"question": question, "answers": [answer], "question_type": question_type}


def build(root: Path, test_fold: int = 3) -> Manifests:
    """Return the rows of each manifest."""
    test = {str(test_fold)}
    train = {"1", "2", "3"} - test
    path = root / "meta.csv"
    return {
        "esc10/train": clips(path, train),
        "esc10/test": clips(path, test),
        "esc10_qa/train": questions(path, train),
        "esc10_qa/test": questions(path, test),
    }


if __name__ == "__main__":
    main(__doc__, build, {"--test-fold": {"type": int, "choices": [1, 2, 3], "default": 3}})
