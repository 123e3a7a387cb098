"""Visual Genome 1.2 (Krishna et al. 2017): captions, regions (grounding, grounded captions) and questions.

    python -m preprocessing.visual_genome data/vg --exclude data/coco/val.jsonl data/coco/test.jsonl
    python -m preprocessing.visual_genome data/vg --answers data/vqav2/answers.txt --only visual_genome/qa_pairs

    data/vg/image_data.json
    data/vg/region_descriptions.json        for visual_genome/regions and visual_genome/captions
    data/vg/question_answers.json           for visual_genome/qa
    data/vg/VG_100K/*.jpg, VG_100K_2/*.jpg

Half of the pictures are COCO's: `--exclude` leaves out those whose `coco_id` is an `image_id` of the given manifests,
so that no test picture is trained on. With `--answers`, `visual_genome/qa_pairs` keeps the questions whose answer is in
the closed set, lower-cased and without its full stop, which the original adds to VQA v2.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.official import Manifests, Row, main, one_line, present, read_json, read_json_lines
from unival.data.answers import read_answers

FILES = {"regions": "region_descriptions.json", "qa": "question_answers.json"}
Images = Mapping[int, Any]


def picture(images: Images, image_id: int) -> Row:
    """Return the columns that say which picture a row is about; the URL's last two parts are its place on disk."""
    image = images[image_id]
    columns = {"image": "/".join(image["url"].split("/")[-2:]), "image_id": image_id}
    return columns | {"width": image["width"], "height": image["height"], "dataset": "visual_genome"}


def regions(path: Path, images: Images) -> Iterator[Row]:
    """Yield a row per region with its box, clipped to the picture; empty ones are left out."""
    for entry in read_json(path):
        for region in entry["regions"]:
            if region["image_id"] not in images:
                continue
            row = {"uid": str(region["region_id"]), **picture(images, region["image_id"])}
            x0, y0 = max(region["x"], 0), max(region["y"], 0)
            x1 = min(region["x"] + region["width"], row["width"])
            y1 = min(region["y"] + region["height"], row["height"])
            if x1 > x0 and y1 > y0:
                yield row | {"text": one_line(region["phrase"]), "box": [x0, y0, x1, y1]}


def captions(path: Path, images: Images) -> Iterator[Row]:
    """Yield the phrase of each region as a caption of its picture."""
    for row in regions(path, images):
        yield {name: value for name, value in row.items() if name not in ("text", "box")} | {"captions": [row["text"]]}


def questions(path: Path, images: Images) -> Iterator[Row]:
    """Yield the questions; a picture's own entry has them all."""
    for entry in read_json(path):
        for qa in entry["qas"]:
            if qa["image_id"] in images:
                row = {"uid": str(qa["qa_id"]), **picture(images, qa["image_id"]), "question_id": qa["qa_id"]}
                yield row | {"question": one_line(qa["question"]), "answers": [one_line(qa["answer"])]}


def pairs(rows: Iterator[Row], allowed: frozenset[str]) -> Iterator[Row]:
    """Yield the questions whose cleaned answer is in the closed set."""
    for row in rows:
        answer = row["answers"][0].lower().rstrip(".").strip()
        if answer in allowed:
            yield row | {"answers": [answer], "confidences": [1.0]}


def build(root: Path, exclude: Sequence[str] = (), answers: str | None = None) -> Manifests:
    """Return the rows of each manifest."""
    # As text: a manifest made from CSV has no numbers.
    excluded = {str(row["image_id"]) for manifest in exclude for row in read_json_lines(Path(manifest))}
    entries = read_json(root / "image_data.json")
    images = {entry["image_id"]: entry for entry in entries if str(entry["coco_id"]) not in excluded}
    if exclude:
        print(f"{len(entries) - len(images)} of {len(entries)} pictures are left out (--exclude)", file=sys.stderr)
    found = present(root, FILES)
    manifests: dict[str, Iterator[Row]] = {}
    if "regions" in found:
        manifests["visual_genome/regions"] = regions(found["regions"], images)
        manifests["visual_genome/captions"] = captions(found["regions"], images)
    if "qa" in found:
        manifests["visual_genome/qa"] = questions(found["qa"], images)
        if answers is not None:
            allowed = frozenset(read_answers(answers))
            manifests["visual_genome/qa_pairs"] = pairs(questions(found["qa"], images), allowed)
    return manifests


if __name__ == "__main__":
    main(
        __doc__,
        build,
        {
            "--exclude": {"nargs": "+", "default": [], "help": "manifests of COCO pictures to leave out"},
            "--answers": {"help": "closed set of answers: add visual_genome/qa_pairs"},
        },
    )
