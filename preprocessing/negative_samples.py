r"""What wrong examples of the pretraining are drawn from: `all_captions.txt`, `object.txt`, `type2ans.json`.

    python -m preprocessing.negative_samples data/coco/train_images.jsonl data/vqav2/train_questions.jsonl \
        --out data/negative_sample
    python -m preprocessing.negative_samples data/webvid/train.jsonl --out data/negative_sample \
        --captions video_captions.txt

Captions of all rows, one per line; names in their `objects`; answers by the question type of which they are most
often the answer, and `other` for those of no type. The names of the files and their form are the original's.
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocessing.official import Row, one_line, read_json_lines
from unival.atomic import replacing, write_json
from unival.data.fields import given_captions
from unival.errors import UserError, run_cli

UNTYPED = ("", "none of the above", "other")


def collect(rows: Iterable[Row]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Return distinct captions, distinct object names, and answers by type, each in order of first occurrence."""
    captions: dict[str, None] = {}
    objects: dict[str, None] = {}
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        captions.update(dict.fromkeys(one_line(text) for text in given_captions(row)))
        objects.update(dict.fromkeys(row.get("objects", [])))
        if row.get("answers"):
            types[row["answers"][0]][row.get("question_type", "")] += 1
    answers: dict[str, list[str]] = {"other": []}
    for answer, counts in types.items():
        kind = counts.most_common(1)[0][0]
        answers.setdefault("other" if kind in UNTYPED else kind, []).append(answer)
    return list(captions), list(objects), answers


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--captions", default="all_captions.txt", help="name of the file of captions")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    captions, objects, answers = collect(row for manifest in args.manifests for row in read_json_lines(manifest))
    if not any((captions, objects, any(answers.values()))):
        raise UserError("the rows have no captions, objects or answers", where=str(args.manifests[0]))
    for name, lines in ((args.captions, captions), ("object.txt", objects)):
        if lines:
            with replacing(args.out / name) as file:
                file.writelines(f"{line}\n" for line in lines)
    if any(answers.values()):
        if not answers["other"]:  # every answer has a type: wrong ones of no type are then any of them
            answers["other"] = [answer for kind in answers.values() for answer in kind]
        write_json(args.out / "type2ans.json", answers)
    summary = {"captions": len(captions), "objects": len(objects), "types": {k: len(v) for k, v in answers.items()}}
    print(json.dumps(summary) if args.json else f"{len(captions)} captions, {len(objects)} objects")


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
