"""VQA v2 (Goyal et al. 2017): questions with ten answers, and the original's training pairs.

    python -m preprocessing.vqa_v2 data/coco
    python -m preprocessing.answer_list data/vqav2/{train_questions,val}.jsonl --min-count 9 --out answers.txt
    python -m preprocessing.vqa_v2 data/coco --answers answers.txt --only vqav2/train vqav2/trainval

    data/coco/v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
    data/coco/v2_mscoco_{train2014,val2014}_annotations.json
    data/coco/train2014/COCO_train2014_*.jpg, val2014/, test2015/

`vqav2/train_questions` and `val` list all ten answers, the most common one first, `testdev` and `test` none. With
`--answers`, `vqav2/train` are the original's training rows: one per question and answer of the closed set, with the
soft accuracy as confidence. `trainval` has those of `val` too, for the test server only; it needs the files of both.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from preprocessing.official import Manifests, Row, main, present, read_json
from unival.data.answers import read_answers
from unival.errors import UserError
from unival.metrics.vqa_accuracy import soft_scores

PARTS = {"train": "train2014", "val": "val2014", "testdev": "test-dev2015", "test": "test2015"}
LABELLED = ("train", "val")


def rows(questions: Path, annotations: Path | None, pictures: str, dataset: str) -> Iterator[Row]:
    """Yield questions of the official format, which VQA v2 and OK-VQA share."""
    by_id = {} if annotations is None else {a["question_id"]: a for a in read_json(annotations)["annotations"]}
    for question in read_json(questions)["questions"]:
        row = {
            "uid": str(question["question_id"]),
            "image": f"{pictures}/COCO_{pictures}_{question['image_id']:012d}.jpg",
            "image_id": question["image_id"],
            "question_id": question["question_id"],
            "question": question["question"],
            "dataset": dataset,
        }
        if annotations is not None:
            annotation = by_id.get(question["question_id"])
            if annotation is None:
                what = f"no annotation of question {question['question_id']}"
                raise UserError(what, where=str(annotations), fix=f"is it the one that belongs to {questions.name}?")
            row |= {name: annotation[name] for name in ("question_type", "answer_type")}
            given = [answer["answer"] for answer in annotation["answers"]]
            best = annotation.get("multiple_choice_answer", max(given, key=given.count))
            row["answers"] = sorted(given, key=lambda answer: answer != best)
        yield row


def pairs(questions: Iterable[Row], allowed: Collection[str]) -> Iterator[Row]:
    """Yield a row for each answer of a question that is in the closed set, best first."""
    for row in questions:
        for answer, score in soft_scores(row["answers"]).items():
            if answer in allowed:
                yield {**row, "uid": f"{row['uid']}-{answer}", "answers": [answer], "confidences": [score]}


def build(root: Path, answers: str | None = None) -> Manifests:
    """Return the rows of each manifest."""
    files = {split: f"v2_OpenEnded_mscoco_{part}_questions.json" for split, part in PARTS.items()}

    def part(split: str) -> Iterator[Row]:
        annotations = root / f"v2_mscoco_{PARTS[split]}_annotations.json" if split in LABELLED else None
        pictures = PARTS[split].replace("test-dev", "test")
        return rows(root / files[split], annotations, pictures, "vqav2")

    found = present(root, files)
    manifests = {f"vqav2/{'train_questions' if split == 'train' else split}": part(split) for split in found}
    if answers is not None:
        allowed = frozenset(read_answers(answers))
        if "train" in found:
            manifests["vqav2/train"] = pairs(part("train"), allowed)
        if found.keys() >= set(LABELLED):
            manifests["vqav2/trainval"] = pairs((row for split in LABELLED for row in part(split)), allowed)
    return manifests


if __name__ == "__main__":
    main(__doc__, build, {"--answers": {"help": "closed set of answers: add vqav2/train and trainval"}})
