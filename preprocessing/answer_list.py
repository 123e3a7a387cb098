"""The closed set of answers of a question-answering data set: the frequent training targets.

    python -m preprocessing.answer_list data/vqav2/{train_questions,val}.jsonl --min-count 9 --out answers.txt
    python -m preprocessing.answer_list data/msrvtt_qa/{train,val}.jsonl --top 4000 --out answers.txt

The first answer of each row counts, after the official normalisation. VQA v2 with 9 occurrences gives the 3,129
answers that everybody uses; the original takes 4,000 for MSRVTT-QA and 1,000 for MSVD-QA. Most frequent first: a line
each, or for an `--out` that ends in `.json` the original's `{answer: number}`. Give it as `candidates_file`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from preprocessing.official import Row, read_json_lines
from unival.atomic import replacing, write_json
from unival.errors import UserError, run_cli
from unival.metrics.vqa_accuracy import normalize_answer


def answer_list(rows: Iterable[Row], min_count: int = 1, top: int | None = None) -> dict[str, int]:
    """Return the answers that are the target of at least `min_count` rows, at most `top`, by their number.

    Raises:
        UserError: No row has answers, or no answer is that frequent.
    """
    counts = Counter(normalize_answer(row["answers"][0]) for row in rows if row.get("answers"))
    counts.pop("", None)
    kept = [answer for answer, count in counts.most_common(top) if count >= min_count]
    if not kept:
        what = f"no answer occurs {min_count} times" if counts else "no row has answers"
        raise UserError(what, fix="give manifests of questions with `answers`, or a smaller --min-count")
    return {answer: number for number, answer in enumerate(kept)}


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--min-count", type=int, default=1)
    parser.add_argument("--top", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    rows = (row for manifest in args.manifests for row in read_json_lines(manifest))
    answers = answer_list(rows, args.min_count, args.top)
    if args.out.suffix == ".json":
        write_json(args.out, answers)
    else:
        with replacing(args.out) as file:
            file.writelines(f"{answer}\n" for answer in answers)
    print(json.dumps({"answers": len(answers), "file": str(args.out)}) if args.json else f"{len(answers)} answers")


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
