"""Scenes of Tux Paint stamps (drawn and photographed things with human captions): one world, five tasks.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb tux      # 161 MB, GPL-2
    python -m preprocessing.tux_paint tux/usr/share/tuxpaint/stamps --out data

Nothing of the stamps ships with this package. Reads `CLASS/.../X.png` with `X.txt`, whose first line is the English
caption; letters, digits and coins (`symbols/`) and mirrored twins are left out. Writes pictures of one to three
things side by side or stacked to `data/tux_paint`, and manifests
`{caption,vqa,grounding,entailment}_{train,val,test,known}` beside them. Parts are cut by caption, so no caption of
train, val or test occurs in another of them; `known` has new scenes of the training part's stamps: what can be named.
A scene is a function of seed, part and number.
"""

import argparse
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from PIL import Image
from tqdm import tqdm

from preprocessing.official import Row, one_line, write_manifests
from unival.errors import UserError, run_cli

PARTS = {"train": 4000, "val": 300, "test": 500, "known": 500}
COLOURS = {"white": (255, 255, 255), "grey": (214, 214, 214), "blue": (198, 218, 240), "green": (205, 232, 200)}
COLOURS |= {"yellow": (248, 240, 190), "pink": (246, 214, 222)}
PLACES = {"row": ("left", "middle", "right"), "column": ("top", "middle", "bottom")}
NEXT = {"row": ("to the left of", "to the right of"), "column": ("above", "below")}
CLASSES = {
    "animals": "an animal", "food": "food", "plants": "a plant", "vehicles": "a vehicle", "clothes": "clothing",
    "household": "a household thing", "people": "a person", "town": "a thing in town",
}  # fmt: skip
SHORTEST_PX = 24
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*( [A-Za-z0-9-]+){0,6}")  # names without quotes and remarks


class Stamp(NamedTuple):
    """A cut-out: "a red kangaroo", "red kangaroo", its class folder and its file."""

    phrase: str
    name: str
    kind: str
    path: Path


class Thing(NamedTuple):
    """A stamp in a scene, with its visible box in pixels and its place."""

    stamp: Stamp
    box: tuple[int, int, int, int]
    place: str


class Scene(NamedTuple):
    """A picture and what is in it, in reading order."""

    image: Image.Image
    colour: str
    layout: str
    things: list[Thing]


def read_stamps(root: Path) -> dict[str, list[Stamp]]:
    """Return the stamps of each part, ordered by path.

    Raises:
        UserError: There are none.
    """
    parts: dict[str, list[Stamp]] = defaultdict(list)
    for path in sorted(root.rglob("*.png")):
        kind = path.relative_to(root).parts[0]
        if kind == "symbols" or path.stem.endswith(("_mirror", "_flip", "_mirror_flip")):
            continue
        text = path.with_suffix(".txt")
        first = text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0] if text.is_file() else ""
        phrase = one_line(first).rstrip(".!").strip()
        article, _, name = phrase.partition(" ")
        if article in ("A", "An", "The", "Some") and PLAIN.fullmatch(name):
            number = crc32(name.lower().encode()) % 10
            part = {0: "test", 1: "val"}.get(number, "train")
            parts[part].append(Stamp(f"{article.lower()} {name}", name, kind, path))
    if not parts:
        raise UserError(f"no captioned stamp in {root}", fix="give .../usr/share/tuxpaint/stamps of the Debian package")
    return parts | {"known": parts["train"]}


def make_scene(stamps: Sequence[Stamp], rng: random.Random, image_px: int) -> Scene:
    """Draw one scene; no name twice, no overlap."""
    chosen: dict[str, Stamp] = {}
    wanted = rng.choice((1, 2, 2, 3))
    while len(chosen) < min(wanted, len({stamp.name for stamp in stamps})):
        stamp = rng.choice(stamps)
        chosen.setdefault(stamp.name, stamp)
    layout, colour = rng.choice(sorted(PLACES)), rng.choice(sorted(COLOURS))
    canvas = Image.new("RGB", (image_px, image_px), COLOURS[colour])
    places = PLACES[layout] if len(chosen) == 3 else (PLACES[layout][0], PLACES[layout][2])
    cell_px = image_px // len(chosen)
    things = []
    for number, stamp in enumerate(chosen.values()):
        cut = _cut_out(stamp.path, rng.uniform(0.75, 1.0) * (cell_px if len(chosen) > 1 else image_px * 0.8))
        along = number * cell_px + rng.randint(0, max(0, cell_px - cut.size[layout == "column"]))
        free = image_px - cut.size[layout == "row"]
        across = rng.randint(free // 4, free - free // 4)
        x, y = (along, across) if layout == "row" else (across, along)
        canvas.paste(cut, (x, y), cut)
        things.append(Thing(stamp, (x, y, x + cut.width, y + cut.height), places[number] if len(chosen) > 1 else ""))
    return Scene(canvas, colour, layout, things)


def _cut_out(path: Path, limit_px: float) -> Image.Image:
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    picture = picture.crop(picture.getchannel("A").point([0] * 17 + [255] * 239).getbbox())  # what can be seen
    scale = limit_px / max(picture.size)
    size = tuple(max(SHORTEST_PX // 4, round(side * scale)) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def describe(scene: Scene) -> str:
    """Return the caption: "a gorilla to the left of a red flag"."""
    return f" {NEXT[scene.layout][0]} ".join(thing.stamp.phrase for thing in scene.things)


def questions(scene: Scene, rng: random.Random, stamps: Sequence[Stamp]) -> Iterator[tuple[str, str, str]]:
    """Yield (question, answer, type), each with one right answer."""
    things = scene.things
    yield "how many things are there?", str(len(things)), "count"
    yield "what is the color of the background?", scene.colour, "color"
    thing = rng.choice(things)
    is_true = rng.random() < 0.5
    asked = thing.stamp if is_true else _absent(scene, rng, stamps)
    yield f"is there {asked.phrase}?", "yes" if is_true else "no", "yesno"
    if len(things) == 1:
        yield "what is this?", thing.stamp.name, "what"
        return
    yield f"where is the {thing.stamp.name}?", thing.place, "where"
    number = rng.randrange(len(things) - 1)
    yield f"what is {NEXT[scene.layout][0]} the {things[number + 1].stamp.name}?", things[number].stamp.name, "what"
    kind = CLASSES.get(thing.stamp.kind)
    if kind is not None and sum(other.stamp.kind == thing.stamp.kind for other in things) == 1:
        yield f"which thing is {kind}?", thing.stamp.name, "class"


def statements(scene: Scene, rng: random.Random, stamps: Sequence[Stamp]) -> Iterator[tuple[str, str]]:
    """Yield one true and one false statement; the false one has another name or the other order."""
    yield describe(scene), "yes"
    things = [thing.stamp.phrase for thing in scene.things]
    if len(things) > 1 and rng.random() < 0.5:
        things = things[::-1]
    else:
        things[rng.randrange(len(things))] = _absent(scene, rng, stamps).phrase
    yield f" {NEXT[scene.layout][0]} ".join(things), "no"


def _absent(scene: Scene, rng: random.Random, stamps: Sequence[Stamp]) -> Stamp:
    present = {thing.stamp.name for thing in scene.things}
    return rng.choice([stamp for stamp in stamps if stamp.name not in present])


def rows_of(scene: Scene, name: str, image: str, rng: random.Random, stamps: Sequence[Stamp]) -> dict[str, list[Row]]:
    """Return the rows of each task about one scene."""
    common = {"image": image, "width": scene.image.width, "height": scene.image.height, "dataset": "tux_paint"}
    names = [thing.stamp.name for thing in scene.things]
    asked = enumerate(questions(scene, rng, stamps))
    said = enumerate(statements(scene, rng, stamps))
    return {
        "caption": [{"uid": name, **common, "captions": [describe(scene)], "objects": names}],
        "vqa": [
            {"uid": f"{name}-{i}", **common, "question": question, "answers": [answer], "question_type": question_type}
            for i, (question, answer, question_type) in asked
        ],
        "grounding": [
            {"uid": f"{name}-{i}", **common, "text": f"the {thing.stamp.name}", "box": list(thing.box)}
            for i, thing in enumerate(scene.things)
        ],
        "entailment": [{"uid": f"{name}-{i}", **common, "text": text, "label": label} for i, (text, label) in said],
    }


def build(root: Path, out: Path, sizes: dict[str, int], image_px: int = 128, seed: int = 0) -> list[Row]:
    """Write the pictures, then the manifests; return what was written."""
    stamps, folder = read_stamps(root), out / "tux_paint"
    manifests: dict[str, list[Row]] = defaultdict(list)
    for part, size in sizes.items():
        if len({stamp.name for stamp in stamps[part]}) < 4:
            raise UserError(f"fewer than four captions in the {part} part", where=str(root))
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number in tqdm(range(size), part, unit=" scenes", disable=None):
            rng = random.Random(crc32(f"{seed}/{part}/{number}".encode()))
            scene = make_scene(stamps[part], rng, image_px)
            image = f"{part}/{number:06d}.png"
            scene.image.save(folder / image)
            for task, rows in rows_of(scene, f"{part}-{number}", image, rng, stamps[part]).items():
                manifests[f"{folder.name}/{task}_{part}"] += rows
    return write_manifests(manifests, folder, out)


def main(argv: Sequence[str]) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the stamps")
    parser.add_argument("--out", type=Path, required=True)
    for part, size in PARTS.items():
        parser.add_argument(f"--{part}", type=int, default=size, help="scenes")
    parser.add_argument("--image-px", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args(argv)
    sizes = {part: getattr(args, part) for part in PARTS}
    written = build(args.root, args.out, {part: size for part, size in sizes.items() if size}, args.image_px, args.seed)
    print(json.dumps(written) if args.json else "\n".join(f"{e['manifest']}: {e['rows']} rows" for e in written))


if __name__ == "__main__":
    run_cli(lambda args: main(args), sys.argv[1:])
