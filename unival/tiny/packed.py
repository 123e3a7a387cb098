"""Pictures packed with objects, from which the image encoder of `unival-tiny` learns names.

Names are a matter of views per concept (docs/experiments.md), and an ordinary scene shows two and a half objects. Three
of four pictures here are a grid of four or nine, which costs the encoder no more. The fourth is an ordinary scene, with
the sizes and places of the world.
"""

import numpy as np

from unival.data import sprites, world
from unival.data.language import pick
from unival.data.scenes import ImageScenes, Scene, SceneObject

GRID_SIDES = (2, 3, 3)
LARGEST_UNEVENNESS = 0.15  # of rows and columns
FILLED = (0.75, 1.0)  # of the shorter side of a cell
SCENE_EVERY = 4


class PackedScenes:
    """An indexable, endless set: item `k` is a function of (split, seed, k) and the arguments, as in `ImageScenes`.

    Args:
        split: "train", "validation" or "test"; the concepts of a picture are a set of this split.
        image_px: Height and width.
        seed: Another one gives other pictures.
        augment: As in `ImageScenes`.
    """

    def __init__(self, split: str, image_px: int = 96, seed: int = 0, augment: bool | None = None) -> None:
        self.scenes = ImageScenes(split, image_px=image_px, seed=seed, augment=augment)

    def __getitem__(self, index: int) -> Scene:
        if index % SCENE_EVERY == 0:
            return self.scenes[index // SCENE_EVERY]
        scenes, px = self.scenes, self.scenes.image_px
        rng = world.generator(scenes.seed, scenes.split, "packed", index)
        side = pick(rng, list(GRID_SIDES))
        columns, rows = (_edges(rng, side) * px for _ in "xy")
        style, colour = pick(rng, list(scenes.styles)), pick(rng, list(sprites.BACKGROUNDS))
        canvas = sprites.background(rng, colour, px)
        objects = []
        for number, concept_index in enumerate(world.draw_concepts(rng, scenes.split, side * side, scenes.pool)):
            row, column = divmod(number, side)
            left, top = columns[column], rows[row]
            width, height = columns[column + 1] - left, rows[row + 1] - top
            jitter = sprites.draw_jitter(rng) if scenes.augment else sprites.PLAIN
            size_px = min(width, height) * rng.uniform(*FILLED)
            pixels, tight = sprites.trim(sprites.transform(world.sprite(style, concept_index), size_px, jitter))
            x = min(int(left + rng.random() * max(width - pixels.shape[2], 0)), px - pixels.shape[2])
            y = min(int(top + rng.random() * max(height - pixels.shape[1], 0)), px - pixels.shape[1])
            sprites.paste(canvas, pixels, x, y)
            box = (float(x + tight[0]), float(y + tight[1]), float(x + tight[2]), float(y + tight[3]))
            concept = world.concepts()[concept_index]
            objects.append(SceneObject(concept_index, concept.name, concept.phrase, concept.group, "", row, box))
        return Scene(sprites.to_uint8(canvas), style, colour, "packed", tuple(objects), scenes.pool)


def _edges(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return where the `side` rows or columns of a grid begin and end, as shares of the picture."""
    lengths = 1 + LARGEST_UNEVENNESS * (2 * rng.random(side) - 1)
    return np.concatenate([[0.0], lengths.cumsum() / lengths.sum()])
