"""The embedded world: 1,052 concepts in three art styles, animated emoji and short sounds, with their splits.

Assets lie in unival/assets/world and are decoded once per process; preprocessing/build_world.py made them.
A record of concepts.jsonl: {"name": "red apple", "kind": "food", "group": "food-drink", "hexcode": "1F34E",
"tags": ["apple", "fruit", ...]}. Licences are in NOTICE.

Nothing here depends on Python's hash or on global random state: the same arguments give the same world
anywhere.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np
from PIL import Image

from unival.data.language import noun_phrase
from unival.errors import UserError

SPLITS = ("train", "validation", "test")
TRAIN_STYLES = ("fluent-emoji-flat", "noto")
"""Art styles that models train on; "twemoji" is held out to measure generalisation to an unseen style."""

_TRAIN_PERCENT, _VALIDATION_PERCENT = 80, 10


_CAST = """
monkey|gorilla|dog|poodle|wolf|fox|cat|lion|tiger|leopard|horse|unicorn|deer|ox|cow|pig|boar|ram|ewe|goat
camel|elephant|rhinoceros|mouse|rat|hamster|rabbit|chipmunk|bat|bear|koala|panda|turkey|chicken|rooster|bird
penguin|dove|eagle|duck|owl|frog|crocodile|turtle|lizard|snake|dragon|whale|dolphin|fish|tropical fish
blowfish|shark|octopus|crab|shrimp|squid|snail|butterfly|bug|ant|honeybee|lady beetle|cricket|spider
scorpion|dog face|cow face|horse face|rabbit face|monkey face|locomotive|bus|ambulance|fire engine
police car|taxi|automobile|delivery truck|tractor|racing car|motorcycle|bicycle|kick scooter|sailboat|canoe
speedboat|ship|airplane|helicopter|rocket|train|watermelon|lemon|banana|pineapple|red apple|green apple|pear
peach|strawberry|tomato|avocado|eggplant|carrot|mushroom|hamburger|pizza|hot dog|taco|egg|doughnut|cookie
birthday cake|lollipop|soccer ball|basketball|guitar|trumpet|drum|umbrella|key|hammer|alarm clock|light bulb
camera|television|telephone|crown|top hat|backpack|rose|sunflower|cactus|evergreen tree|snowman|balloon
wrapped gift|jack-o-lantern|ghost|star|red heart|cloud|tornado|rainbow|person running|person swimming
person surfing|snowboarder|santa claus|ferris wheel|sun with face|full moon face
"""


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing that can be drawn: its plain name, noun phrase, group word and keywords."""

    index: int
    name: str
    phrase: str
    group: str
    tags: tuple[str, ...]
    hexcode: str


def asset(name: str) -> Traversable:
    """Return one file of the assets."""
    return resources.files("unival") / "assets" / "world" / name


@cache
def layout() -> dict:
    """Return world.json: cell size, styles, animated hexcodes and the index of the sounds."""
    return json.loads(asset("world.json").read_text("utf-8"))


@cache
def concepts() -> tuple[Concept, ...]:
    """Return all concepts; position in the tuple is the concept index."""
    records = [json.loads(line) for line in asset("concepts.jsonl").read_text("utf-8").splitlines()]
    return tuple(
        Concept(i, r["name"], noun_phrase(r["name"]), r["kind"], tuple(r["tags"]), r["hexcode"])
        for i, r in enumerate(records)
    )


@cache
def concept_index() -> dict[str, int]:
    """Return the concept index of every name."""
    return {concept.name: concept.index for concept in concepts()}


@cache
def concepts_by_group() -> dict[str, tuple[int, ...]]:
    """Return the concept indices of every group word, in index order."""
    groups: dict[str, list[int]] = {}
    for concept in concepts():
        groups.setdefault(concept.group, []).append(concept.index)
    return {group: tuple(members) for group, members in groups.items()}


@cache
def cast() -> tuple[int, ...]:
    """Return the concept indices that clips use: 153 concrete things with a singular name."""
    names = _CAST.strip().replace("\n", "|").split("|")
    return tuple(concept_index()[name] for name in names)


def styles() -> tuple[str, ...]:
    """Return the names of the art styles."""
    return tuple(layout()["styles"])


def check_styles(names: Sequence[str]) -> tuple[str, ...]:
    """Return the style names as a tuple; raise UserError for an unknown or missing name."""
    unknown = [name for name in names if name not in styles()]
    if unknown or not names:
        what = f"unknown art style {unknown[0]!r}" if unknown else "no art style given"
        raise UserError(what, where="styles", fix=f"choose from {', '.join(styles())}")
    return tuple(names)


def check_split(split: str) -> str:
    """Return the split; raise UserError if it is none of SPLITS."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}", where="split", fix=f"choose from {', '.join(SPLITS)}")
    return split


def _open_image(name: str) -> np.ndarray:
    with asset(name).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGBA"))


def _tight(frames: np.ndarray) -> tuple[Image.Image, ...]:
    """Crop frames (F, H, W, 4) to what is visible in any; return them premultiplied (mode RGBa)."""
    visible = (frames[..., 3] > 12).any(0)
    rows, columns = np.flatnonzero(np.any(visible, 1)), np.flatnonzero(np.any(visible, 0))
    cropped = frames[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return tuple(Image.fromarray(np.ascontiguousarray(frame)).convert("RGBa") for frame in cropped)


@cache
def _sheet(style: str) -> np.ndarray:
    (style,) = check_styles([style])
    return _open_image(f"{style}.webp")


@cache
def sprite(style: str, index: int) -> Image.Image:
    """Return concept `index` drawn in `style`: mode RGBa, at most 48 px, cropped tight."""
    px, columns = layout()["cell_px"], layout()["columns"]
    row, column = divmod(index, columns)
    cell = _sheet(style)[row * px : (row + 1) * px, column * px : (column + 1) * px]
    return _tight(cell[None])[0]


@cache
def animated_rows() -> dict[int, int]:
    """Return the row in the animation sheet of every animated concept index."""
    by_hexcode = {concept.hexcode: concept.index for concept in concepts()}
    return {by_hexcode[hexcode]: row for row, hexcode in enumerate(layout()["animations"])}


@cache
def animation(index: int) -> tuple[Image.Image, ...]:
    """Return the 8 frames of an animated concept (RGBa), all cropped to their common tight box."""
    px, row = layout()["cell_px"], animated_rows()[index]
    strip = _animation_sheet()[row * px : (row + 1) * px]
    return _tight(strip.reshape(px, -1, px, 4).swapaxes(0, 1))


@cache
def _animation_sheet() -> np.ndarray:
    return _open_image("animations.webp")


def hash_percent(text: str) -> int:
    """Return a stable hash of the text in 0..99 (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 100


def split_of(concept_set: Iterable[int | str]) -> str:
    """Return the split that owns a set of concepts (indices or names), whatever their order.

    The sorted names decide by a stable hash: 80 % train, 10 % validation, 10 % test. A single concept is a
    set too, so a picture of one apple belongs to one split only.
    """
    everything = concepts()
    names = {item if isinstance(item, str) else everything[item].name for item in concept_set}
    percent = hash_percent("|".join(sorted(names)))
    if percent < _TRAIN_PERCENT:
        return "train"
    return "validation" if percent < _TRAIN_PERCENT + _VALIDATION_PERCENT else "test"


def generator(seed: int, split: str, kind: str, index: int) -> np.random.Generator:
    """Return the random generator of example `index`: the same on every machine."""
    key = int.from_bytes(hashlib.blake2b(f"{kind}/{split}".encode(), digest_size=4).digest(), "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, key, index))))


def draw_concepts(
    rng: np.random.Generator, split: str, num: int, pool: Sequence[int], pools: Sequence[Sequence[int]] = ()
) -> list[int]:
    """Draw `num` distinct concepts whose set belongs to the split, by rejection.

    With `pools` (the groups) the whole set comes from one of them that is large enough, chosen at random:
    pictures of four animals make counting and naming harder than four unrelated things.
    """
    large = [members for members in pools if len(members) >= 3 * num]
    while True:
        # A small group may own no set of this split at all, so another group is drawn after some failures.
        members = large[int(rng.integers(len(large)))] if large else pool
        for row in rng.integers(len(members), size=(16, num)).tolist():
            chosen = [members[position] for position in row]
            if len(set(chosen)) == num and split_of(chosen) == split:
                return chosen
