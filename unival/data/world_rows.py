"""Rows of the embedded world: what each task asks about a generated scene, clip or sound.

Row `i * variants + k` asks the k-th question about scene i, so that tasks that share scenes share the encoded picture.
"""

import inspect
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from unival.config_problem import check_kinds
from unival.data import world
from unival.data.clips import MovingClips, clip_negative_caption, clip_questions
from unival.data.questions import lookup_questions, questions
from unival.data.scenes import ImageScenes
from unival.data.sounds import Sounds, sound_questions
from unival.data.statements import negative_caption, regions, statements
from unival.errors import UserError, did_you_mean

DEFAULT_LIMIT = {"train": 10**9, "validation": 1000, "test": 1000}
VARIANTS = 4
DETAILED_FRACTION = 0.15
BRIEF_FRACTION = 0.1

Row = dict[str, Any]
Rng = np.random.Generator


def image_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Describe the whole scene."""
    return {"caption": scene.caption, "objects": [o.name for o in scene.objects]}


def image_varied_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Describe as people do: mostly plainly, sometimes in more detail, sometimes in brief."""
    draw = rng.random()
    if draw < DETAILED_FRACTION:
        return image_detailed_caption(scene, rng, k)
    caption = scene.objects[0].phrase if draw > 1.0 - BRIEF_FRACTION else scene.caption
    return {"caption": caption, "objects": [o.name for o in scene.objects]}


def image_detailed_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Describe the scene and its background."""
    article = "an" if scene.background[0] in "aeiou" else "a"
    row = image_caption(scene, rng, k)
    return row | {"caption": f"{scene.caption} on {article} {scene.background} background"}


def image_vqa(scene: Any, rng: Rng, k: int) -> Row:
    """Ask the k-th of several questions of different types."""
    return question_row(questions(scene, rng, VARIANTS)[k])


def image_lookup(scene: Any, rng: Rng, k: int) -> Row:
    """Ask where something named is, or whether it is there at all."""
    found = lookup_questions(scene, rng, VARIANTS)
    return question_row(found[k % len(found)])


def image_grounding(scene: Any, rng: Rng, k: int) -> Row:
    """Name one region."""
    found = regions(scene, rng, VARIANTS)
    region = found[k % len(found)]
    height, width = scene.image.shape[:2]
    return {"text": region.text, "box": list(region.box), "width": width, "height": height}


def image_grounded_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Show one object's box; its name is the answer."""
    thing = scene.objects[(int(rng.integers(4)) + k) % len(scene.objects)]
    height, width = scene.image.shape[:2]
    return {"text": thing.name, "box": list(thing.box), "width": width, "height": height}


def image_entailment(scene: Any, rng: Rng, k: int) -> Row:
    """State something true, false or undecidable."""
    statement = statements(scene, rng, VARIANTS)[k]
    return {"text": statement.text, "label": statement.label}


def image_matching(scene: Any, rng: Rng, k: int) -> Row:
    """Show the caption or a corrupted one."""
    return matching_row(scene.caption, lambda: negative_caption(scene, rng), rng)


def video_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Describe what moves and how."""
    return {"caption": scene.caption, "objects": [o.name for o in scene.objects]}


def video_vqa(scene: Any, rng: Rng, k: int) -> Row:
    """Ask the k-th of several temporal questions."""
    return question_row(clip_questions(scene, rng, VARIANTS)[k])


def video_matching(scene: Any, rng: Rng, k: int) -> Row:
    """Show the caption or a corrupted one."""
    return matching_row(scene.caption, lambda: clip_negative_caption(scene, rng), rng)


def audio_caption(scene: Any, rng: Rng, k: int) -> Row:
    """Describe what is heard."""
    return {"caption": scene.caption, "families": list(scene.families)}


def audio_vqa(scene: Any, rng: Rng, k: int) -> Row:
    """Ask what is heard first, or how many sounds there are."""
    found = sound_questions(scene, rng, VARIANTS)
    return question_row(found[k % len(found)])


def question_row(question: Any) -> Row:
    """Return the columns of a question."""
    return {"question": question.question, "answers": [question.answer], "question_type": question.type}


def matching_row(caption: str, negative: Callable[[], str], rng: Rng) -> Row:
    """Return the caption or a corrupted one, with equal chances."""
    is_positive = rng.random() < 0.5
    return {"text": caption if is_positive else negative(), "label": "yes" if is_positive else "no"}


CONTENTS: Mapping[tuple[str, str], Callable[[Any, Rng, int], Row]] = {
    ("image", "caption"): image_caption,
    ("image", "varied_caption"): image_varied_caption,
    ("image", "detailed_caption"): image_detailed_caption,
    ("image", "vqa"): image_vqa,
    ("image", "lookup"): image_lookup,
    ("image", "grounding"): image_grounding,
    ("image", "grounded_caption"): image_grounded_caption,
    ("image", "entailment"): image_entailment,
    ("image", "matching"): image_matching,
    ("video", "caption"): video_caption,
    ("video", "vqa"): video_vqa,
    ("video", "matching"): video_matching,
    ("audio", "caption"): audio_caption,
    ("audio", "vqa"): audio_vqa,
}
GENERATORS: Mapping[str, Callable[..., Any]] = {"image": ImageScenes, "video": MovingClips, "audio": Sounds}


@lru_cache(maxsize=16)
def generator(modality: str, split: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """Return the scene generator of a modality, shared by the tasks that look at the same scenes.

    Raises:
        UserError: If it has no such option.
    """
    known = list(inspect.signature(GENERATORS[modality]).parameters)[1:]
    for name, _ in options:
        if name not in known:
            raise UserError(f"the {modality} world has no option {name!r}", fix=did_you_mean(name, known))
    check_kinds(GENERATORS[modality], dict(options), "options.")
    return GENERATORS[modality](split, **dict(options))


@lru_cache(maxsize=512)
def scene_and_medium(modality: str, split: str, options: tuple[tuple[str, Any], ...], index: int) -> tuple[Any, Any]:
    """Return a scene and its medium: pixels, encoded clip or waveform."""
    scene = generator(modality, split, options)[index]
    if modality == "image":
        return scene, scene.image
    if modality == "video":
        return scene, scene.encode()
    return scene, scene.waveform


class WorldRows:
    """Rows about generated scenes; see `unival.data.source.Source`."""

    def __init__(
        self,
        content: str,
        modality: str,
        split: str,
        styles: tuple[str, ...] | None = None,
        limit: int | None = None,
        options: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        self.content, self.modality, self.split = content, modality, split
        self.options = options + ((("styles", styles),) if styles and modality != "audio" else ())
        self.row = CONTENTS[modality, content]
        self.key = f"{zlib.crc32(repr(self.options).encode()):08x}"
        self.variants = VARIANTS if split == "train" else 1
        self.limit = limit or DEFAULT_LIMIT[split]
        self.vocabulary = [concept.name for concept in world.concepts()] * 3
        generator(modality, split, self.options)  # fail early on unknown styles or options

    def __len__(self) -> int:
        return self.limit * self.variants

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        number, k = divmod(index, self.variants)
        scene, medium = scene_and_medium(self.modality, self.split, self.options, number)
        rng = world.generator(7, self.split, f"{self.modality}/{self.content}", number)
        if self.variants == 1:
            k = number % VARIANTS  # spread question types over the rows of a test split
        media_id = f"world/{self.split}/{self.modality}/{self.key}/{number}"
        uid = f"{media_id}/{self.content}/{k}"
        # Tasks leave the world's texts as they are: "snow-capped" keeps its hyphen.
        row = {"uid": uid, "media_id": media_id, "as_written": True, self.modality: medium}
        return row | self.row(scene, rng, k)
