"""Moving clips: up to three emoji that move at constant speed or stay still, really encoded as H.264 in MP4.

    clip = MovingClips("test")[7]
    clip.frames                 # uint8 (8, 64, 64, 3)
    clip.encode()               # bytes of an MP4 file, 8 frames per second
    clip.caption                # "a cat moves to the left and a dog stays still"

Every object has a lane of its own (rows for left and right, columns for up and down), so nothing overlaps;
objects are listed from top to bottom or from left to right. Concepts come from `world.cast()`. Where the Fluent
style is drawn and the concept has an animation, half of the time the animation plays while the object
moves. Splits are those of the scenes: by the set of concepts, whatever the motions.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import av
import numpy as np
from av.codec import Codec
from av.video.reformatter import VideoReformatter

from unival.data import sprites, world
from unival.data.language import Question, definite, join, pick
from unival.data.questions import spread
from unival.errors import UserError

FRAMES_PER_SECOND = 8
CLIP_QUESTION_TYPES = ("what", "direction", "count", "yesno")
MOTIONS = {
    "left": "to the left",
    "right": "to the right",
    "up": "up",
    "down": "down",
}
"""Direction -> the words after "moves"; the fifth motion is "still"."""

_NUM_OBJECTS_WEIGHTS = (0.3, 0.4, 0.3)
_MIN_TRAVEL = 0.25  # of the canvas
_SIZES = ((0.34, 0.55), (0.34, 0.46), (0.26, 0.31))  # of the canvas, by number of objects
_LANE_NAMES = {
    "rows": (("middle",), ("top", "bottom"), ("top", "middle", "bottom")),
    "columns": (("middle",), ("left", "right"), ("left", "middle", "right")),
}
_STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_ENCODER, _CRF, _PRESET = "libx264", "18", "veryfast"


@dataclass(frozen=True, slots=True)
class MovingObject:
    """One concept with its lane and motion ("left", "right", "up", "down", "still").

    `boxes` holds one tight box (x0, y0, x1, y1) in pixels per frame.
    """

    concept: int
    name: str
    phrase: str
    group: str
    lane: str
    motion: str
    boxes: tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class MovingClip:
    """A clip with everything that is true about it. `frames` is uint8 (F, H, W, 3)."""

    frames: np.ndarray
    style: str
    background: str
    objects: tuple[MovingObject, ...]

    @cached_property
    def caption(self) -> str:
        """The one canonical description, lane by lane."""
        return _describe([obj.phrase for obj in self.objects], [obj.motion for obj in self.objects])

    def encode(self) -> bytes:
        """Return the clip as the bytes of an MP4 file (H.264, yuv420p); the same bytes every time."""
        return encode_mp4(self.frames)


class MovingClips:
    """An indexable set of moving clips; see `ImageScenes` for the arguments that both share.

    Args:
        split: "train", "validation" or "test".
        styles: art styles; each clip is drawn in one of them.
        frames: frames per clip, 2 or more.
        video_px: height and width, even.
        max_objects: 1 to 3.
        seed: a different seed gives different clips of the same split.
        augment: vary the appearance of each object; by default for "train" only.
        length: what `len` reports.
    """

    def __init__(
        self,
        split: str,
        styles: Sequence[str] = world.TRAIN_STYLES,
        frames: int = 8,
        video_px: int = 64,
        max_objects: int = 3,
        seed: int = 0,
        augment: bool | None = None,
        length: int = 1_000_000_000,
    ) -> None:
        if not 1 <= max_objects <= 3 or frames < 2 or video_px < 32 or video_px % 2:
            raise UserError(
                f"max_objects={max_objects}, frames={frames}, video_px={video_px}",
                where="MovingClips",
                fix="use 1 to 3 objects, at least 2 frames and an even size of at least 32 px",
            )
        self.split = world.check_split(split)
        self.styles = world.check_styles(styles)
        self.frames = frames
        self.video_px = video_px
        self.max_objects = max_objects
        self.seed = seed
        self.augment = split == "train" if augment is None else augment
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> MovingClip:
        if not 0 <= index < self.length:
            raise IndexError(f"clip {index} of {self.length}")
        rng = world.generator(self.seed, self.split, "video", index)
        num_objects = 1 + pick(rng, list(range(self.max_objects)), list(_NUM_OBJECTS_WEIGHTS[: self.max_objects]))
        chosen = world.draw_concepts(rng, self.split, num_objects, world.cast())
        lanes = pick(rng, ["rows", "columns"])
        directions = ["left", "right"] if lanes == "rows" else ["up", "down"]
        # One object alone has the five motions evenly; with more, "still" is a third.
        weights = [0.4, 0.4, 0.2] if num_objects == 1 else [1.0, 1.0, 1.0]
        motions = [pick(rng, [*directions, "still"], weights) for _ in chosen]
        style = pick(rng, list(self.styles))
        colour = pick(rng, list(sprites.BACKGROUNDS))
        canvas = sprites.background(rng, colour, self.video_px)
        frames = [canvas.copy() for _ in range(self.frames)]
        objects = []
        for lane, (concept_index, motion) in enumerate(zip(chosen, motions, strict=True)):
            pictures = self._pictures(rng, concept_index, style, num_objects)
            span = self.video_px * lane // num_objects, self.video_px * (lane + 1) // num_objects
            boxes = _animate(rng, frames, pictures, lanes, span, motion)
            concept = world.concepts()[concept_index]
            name = _LANE_NAMES[lanes][num_objects - 1][lane]
            objects.append(
                MovingObject(concept_index, concept.name, concept.phrase, concept.group, name, motion, boxes)
            )
        pixels = np.stack([sprites.to_uint8(frame) for frame in frames])
        return MovingClip(pixels, style, colour, tuple(objects))

    def _pictures(self, rng: np.random.Generator, concept_index: int, style: str, num_objects: int) -> list[np.ndarray]:
        """Return the pictures (4, h, w) of an object, one per frame, all of one size."""
        low, high = _SIZES[num_objects - 1]
        size_px = (low + (high - low) * rng.random()) * self.video_px
        jitter = sprites.draw_jitter(rng) if self.augment else sprites.PLAIN
        is_playing = rng.random() < 0.5 and style.startswith("fluent") and concept_index in world.animated_rows()
        if is_playing:
            stills = [sprites.transform(frame, size_px, jitter) for frame in world.animation(concept_index)]
        else:
            stills = [sprites.transform(world.sprite(style, concept_index), size_px, jitter)]
        return [stills[k % len(stills)] for k in range(self.frames)]


def _animate(
    rng: np.random.Generator,
    frames: list[np.ndarray],
    pictures: list[np.ndarray],
    lanes: str,
    span: tuple[int, int],
    motion: str,
) -> tuple[tuple[float, float, float, float], ...]:
    """Paste an object into every frame along its lane; return its tight box in each frame."""
    num_px = frames[0].shape[1]
    _, height, width = pictures[0].shape
    length, breadth = (width, height) if lanes == "rows" else (height, width)
    across = span[0] + int(rng.integers(max(span[1] - span[0] - breadth, 0) + 1))
    room = num_px - length
    travel = 0
    if motion != "still":
        shortest = min(int(np.ceil(_MIN_TRAVEL * num_px)) + 1, room)
        travel = int(rng.integers(shortest, room + 1))
    first = int(rng.integers(room - travel + 1))
    if sum(_STEP[motion]) < 0:
        first, travel = first + travel, -travel
    boxes = []
    for k, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        along = round(first + travel * k / (len(frames) - 1))
        x, y = (along, across) if lanes == "rows" else (across, along)
        sprites.paste(frame, picture, x, y)
        left, top, right, bottom = sprites.tight_box(picture)
        boxes.append((float(x + left), float(y + top), float(x + right), float(y + bottom)))
    return tuple(boxes)


def encode_mp4(frames: np.ndarray) -> bytes:
    """Encode uint8 frames (F, H, W, 3) as H.264 in MP4 with one thread, so that the bytes are reproducible.

    Raises:
        UserError: If this build of PyAV has no H.264 encoder.
    """
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    try:
        Codec(_ENCODER, "w")
    except ValueError as error:
        raise UserError(
            f"PyAV {av.__version__} has no {_ENCODER} encoder",
            where="video clips",
            fix="pip install --upgrade av",
        ) from error
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(_ENCODER, rate=FRAMES_PER_SECOND, options={"crf": _CRF, "preset": _PRESET})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = reformatter.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format="yuv420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _describe(phrases: Sequence[str], motions: Sequence[str]) -> str:
    return join([f"{phrase} {_verb(motion, 's')}" for phrase, motion in zip(phrases, motions, strict=True)])


def _verb(motion: str, ending: str = "") -> str:
    return f"stay{ending} still" if motion == "still" else f"move{ending} {MOTIONS[motion]}"


def clip_questions(clip: MovingClip, rng: np.random.Generator, n: int) -> list[Question]:
    """Return up to n different questions with the types of CLIP_QUESTION_TYPES spread evenly."""
    return spread(lambda type: clip_question_of_type(clip, rng, type), CLIP_QUESTION_TYPES, rng, n)


def clip_question_of_type(clip: MovingClip, rng: np.random.Generator, type: str) -> Question:
    """Return a random question of one type."""
    makers = {"what": _what, "direction": _direction, "count": _count, "yesno": _yesno}
    return Question(type, *makers[type](clip, rng))


def _what(clip: MovingClip, rng: np.random.Generator) -> tuple[str, str]:
    motions = [obj.motion for obj in clip.objects]
    unique = [obj for obj in clip.objects if motions.count(obj.motion) == 1]
    if not unique:
        obj = pick(rng, list(clip.objects))
        return f"what is {_lane_phrase(obj.lane)}?", obj.name
    obj = pick(rng, unique)
    return f"what {_verb(obj.motion, 's')}?", obj.name


def _lane_phrase(lane: str) -> str:
    return "in the middle" if lane == "middle" else f"at the {lane}"


def _direction(clip: MovingClip, rng: np.random.Generator) -> tuple[str, str]:
    # "still" is a third of the motions where there are several objects, a direction a sixth.
    weights = [0.5 if obj.motion == "still" and len(clip.objects) > 1 else 1.0 for obj in clip.objects]
    obj = pick(rng, list(clip.objects), weights)
    answer = "it stays still" if obj.motion == "still" else obj.motion
    return f"which way does {definite(obj.name)} move?", answer


def _count(clip: MovingClip, rng: np.random.Generator) -> tuple[str, str]:
    motions = [obj.motion for obj in clip.objects]
    num_still = motions.count("still")
    counts = {"move": len(motions) - num_still, "stay still": num_still, "are there": len(motions)}
    counts |= {_verb(motion): motions.count(motion) for motion in MOTIONS}
    answers = sorted(set(counts.values()))
    answer = pick(rng, answers, [(0.25, 0.5, 0.9, 1.6)[value] for value in answers])
    words = pick(rng, [words for words, count in counts.items() if count == answer])
    return f"how many things {words}?", str(answer)


def _yesno(clip: MovingClip, rng: np.random.Generator) -> tuple[str, str]:
    is_yes = rng.random() < 0.5
    obj = pick(rng, list(clip.objects))
    is_moving = obj.motion != "still"
    if rng.random() < 0.35:  # whether it moves at all
        verb = "move" if is_moving == is_yes else "stay still"
    elif is_moving and is_yes:
        verb = _verb(obj.motion)
    else:
        # A still object has no true direction, so "yes" asks whether it stays still.
        wrong = [_verb(motion) for motion in MOTIONS if motion != obj.motion]
        verb = "stay still" if is_yes else pick(rng, wrong)
    return f"does {definite(obj.name)} {verb}?", "yes" if is_yes else "no"


def clip_negative_caption(clip: MovingClip, rng: np.random.Generator) -> str:
    """Return the caption with a name replaced, a motion changed or two motions swapped; never true."""
    phrases = [obj.phrase for obj in clip.objects]
    motions = [obj.motion for obj in clip.objects]
    kind = rng.random()
    different = [(i, j) for i in range(len(motions)) for j in range(i) if motions[i] != motions[j]]
    if kind < 0.25 and different:
        i, j = pick(rng, different)
        motions[i], motions[j] = motions[j], motions[i]
    elif kind < 0.6:
        i = int(rng.integers(len(motions)))
        motions[i] = pick(rng, [motion for motion in [*MOTIONS, "still"] if motion != motions[i]])
    else:
        absent = [index for index in world.cast() if index not in {obj.concept for obj in clip.objects}]
        phrases[int(rng.integers(len(phrases)))] = world.concepts()[pick(rng, absent)].phrase
    return _describe(phrases, motions)
