"""Image scenes: one to four emoji on a soft background, with exact ground truth.

A scene is a pure function of (split, seed, index and the arguments of `ImageScenes`):

    scene = ImageScenes("test")[7]
    scene.image                 # uint8 (96, 96, 3)
    scene.caption               # "a cat and a dog above a bus"
    scene.objects[0].box        # (x0, y0, x1, y1) in pixels, tight around what is visible

Scenes of the splits never share a set of concepts (`world.split_of`). Layouts: "single", "row", "column",
"two above one", "one above two", "two above two"; objects are listed in reading order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from unival.data import sprites, world
from unival.data.language import join, pick
from unival.errors import UserError

_NUM_OBJECTS_WEIGHTS = (0.25, 0.30, 0.20, 0.25)
_THEMED_FRACTION = 0.35  # scenes whose objects are all of one group
_WHITE_FRACTION = 0.3

# Layout -> per object (position name, row, cell centre x, cell centre y) as fractions of the canvas.
_LAYOUTS: dict[str, tuple[tuple[str, int, float, float], ...]] = {
    "single": (("center", 0, 0.5, 0.5),),
    "row": (("left", 0, 0.25, 0.5), ("right", 0, 0.75, 0.5)),
    "column": (("top", 0, 0.5, 0.25), ("bottom", 1, 0.5, 0.75)),
    "two above one": (("top left", 0, 0.25, 0.25), ("top right", 0, 0.75, 0.25), ("bottom", 1, 0.5, 0.75)),
    "one above two": (("top", 0, 0.5, 0.25), ("bottom left", 1, 0.25, 0.75), ("bottom right", 1, 0.75, 0.75)),
    "two above two": (
        ("top left", 0, 0.25, 0.25),
        ("top right", 0, 0.75, 0.25),
        ("bottom left", 1, 0.25, 0.75),
        ("bottom right", 1, 0.75, 0.75),
    ),
}
_LAYOUTS_OF_NUM = (("single",), ("row", "column"), ("two above one", "one above two"), ("two above two",))


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One drawn concept with its place: `position` is "left", "top right", ...; `row` counts from the top."""

    concept: int
    name: str
    phrase: str
    group: str
    position: str
    row: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture with everything that is true about it.

    `image` is uint8 (H, W, 3); `pool` holds the concepts that could have been in it, for questions about absent ones.
    """

    image: np.ndarray
    style: str
    background: str
    layout: str
    objects: tuple[SceneObject, ...]
    pool: tuple[int, ...]

    @property
    def pil(self) -> Image.Image:
        """The picture as a PIL image."""
        return Image.fromarray(self.image)

    @cached_property
    def caption(self) -> str:
        """The one canonical description: "a cat left of a dog", "a cat above a dog and a bus"."""
        return describe(self.layout, [obj.phrase for obj in self.objects], [obj.row for obj in self.objects])

    @cached_property
    def relations(self) -> tuple[tuple[int, str, int], ...]:
        """All clear relations (object, "left of" | "right of" | "above" | "below", object).

        Objects of one row are left and right of each other; objects of different rows are above and below
        each other unless they are diagonal in "two above two".
        """
        found = []
        for i, first in enumerate(self.objects):
            for j in range(i + 1, len(self.objects)):
                second = self.objects[j]
                if first.row == second.row:
                    found += [(i, "left of", j), (j, "right of", i)]
                elif self.layout != "two above two" or j - i == 2:
                    found += [(i, "above", j), (j, "below", i)]
        return tuple(found)


def describe(layout: str, phrases: Sequence[str], rows: Sequence[int]) -> str:
    """Return the canonical caption for phrases in reading order."""
    if layout == "single":
        return phrases[0]
    if layout == "row":
        return f"{phrases[0]} left of {phrases[1]}"
    top = [phrase for phrase, row in zip(phrases, rows, strict=True) if row == 0]
    bottom = [phrase for phrase, row in zip(phrases, rows, strict=True) if row == 1]
    return f"{join(top)} above {join(bottom)}"


class ImageScenes:
    """An endless-looking, indexable set of image scenes.

    Args:
        split: "train", "validation" or "test".
        styles: art styles; each scene is drawn in one of them.
        image_px: height and width of the pictures; everything scales with it.
        max_objects: 1 to 4.
        seed: a different seed gives different scenes of the same split.
        augment: vary rotation, aspect, colour and sharpness of each object; by default for "train" only.
        concepts: "all", or "cast" for the 153 that also occur in clips.
        zoom: makes objects larger on the same canvas, 0.5 to 1.5; above 1 for single objects only.
        length: what `len` reports; indices from 0 to length - 1 are valid.
    """

    def __init__(
        self,
        split: str,
        styles: Sequence[str] = world.TRAIN_STYLES,
        image_px: int = 96,
        max_objects: int = 4,
        seed: int = 0,
        augment: bool | None = None,
        concepts: str = "all",
        zoom: float = 1.0,
        length: int = 1_000_000_000,
    ) -> None:
        if not 1 <= max_objects <= 4 or image_px < 24:
            raise UserError(
                f"max_objects={max_objects}, image_px={image_px}",
                where="ImageScenes",
                fix="use 1 to 4 objects and at least 24 px",
            )
        if not 0.5 <= zoom <= 1.5 or (zoom > 1 and max_objects > 1):
            raise UserError(
                f"zoom={zoom} with max_objects={max_objects}",
                where="ImageScenes",
                fix="0.5 to 1.5; above 1 with max_objects=1",
            )
        self.split = world.check_split(split)
        self.styles = world.check_styles(styles)
        self.zoom = zoom
        self.image_px = image_px
        self.max_objects = max_objects
        self.seed = seed
        self.augment = split == "train" if augment is None else augment
        self.length = length
        if concepts not in ("all", "cast"):
            raise UserError(f"unknown concepts {concepts!r}", where="ImageScenes", fix="valid: all, cast")
        self.pool = world.cast() if concepts == "cast" else tuple(range(len(world.concepts())))
        inside = frozenset(self.pool)
        self.groups = tuple(
            tuple(index for index in members if index in inside) for members in world.concepts_by_group().values()
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = world.generator(self.seed, self.split, "image", index)
        num_objects = 1 + pick(rng, list(range(self.max_objects)), list(_NUM_OBJECTS_WEIGHTS[: self.max_objects]))
        layout = pick(rng, list(_LAYOUTS_OF_NUM[num_objects - 1]))
        groups = self.groups if rng.random() < _THEMED_FRACTION else ()
        chosen = world.draw_concepts(rng, self.split, num_objects, self.pool, groups)
        style = pick(rng, list(self.styles))
        colour = "white" if rng.random() < _WHITE_FRACTION else pick(rng, list(sprites.BACKGROUNDS)[1:])
        return self._draw(rng, layout, chosen, style, colour)

    def _draw(self, rng: np.random.Generator, layout: str, chosen: list[int], style: str, colour: str) -> Scene:
        canvas = sprites.background(rng, colour, self.image_px)
        scale = self.image_px / 96 * self.zoom
        objects = []
        for concept_index, (position, row, x, y) in zip(chosen, _LAYOUTS[layout], strict=True):
            cell_px, largest_px = (self.image_px, 64) if layout == "single" else (self.image_px // 2, 46)
            size_px = (30 + (largest_px - 30) * rng.random()) * scale
            jitter = sprites.draw_jitter(rng) if self.augment else sprites.PLAIN
            pixels, tight = sprites.trim(sprites.transform(world.sprite(style, concept_index), size_px, jitter))
            slack_px = cell_px if layout == "single" else cell_px * 3 // 8
            x0 = _place(rng, x * self.image_px, cell_px, pixels.shape[2], slack_px)
            y0 = _place(rng, y * self.image_px, cell_px, pixels.shape[1], slack_px)
            sprites.paste(canvas, pixels, x0, y0)
            box = (float(x0 + tight[0]), float(y0 + tight[1]), float(x0 + tight[2]), float(y0 + tight[3]))
            concept = world.concepts()[concept_index]
            objects.append(SceneObject(concept_index, concept.name, concept.phrase, concept.group, position, row, box))
        return Scene(sprites.to_uint8(canvas), style, colour, layout, tuple(objects), self.pool)


def _place(rng: np.random.Generator, centre: float, cell_px: int, length: int, slack_px: int) -> int:
    """Return where an object of `length` pixels starts: inside its cell, with `slack_px` of freedom at most.

    The limit matters for thin objects, which could otherwise stand diagonally in a row or a column.
    """
    slack_px = min(max(cell_px - length, 0), slack_px)
    return round(centre - (length + slack_px) / 2) + int(rng.integers(slack_px + 1))
