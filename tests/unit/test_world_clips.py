"""Moving clips: what the encoded file shows, what the caption says, and the questions about it."""

import io

import av
import numpy as np
import pytest

from unival.data.clips import (
    CLIP_QUESTION_TYPES,
    MOTIONS,
    MovingClip,
    MovingClips,
    clip_negative_caption,
    clip_question_of_type,
    clip_questions,
)
from unival.data.language import definite
from unival.data.world import cast, concepts, split_of


@pytest.fixture(scope="module")
def clips() -> list[MovingClip]:
    train, test = MovingClips("train"), MovingClips("test", styles=("twemoji",))
    return [train[i] for i in range(60)] + [test[i] for i in range(60)]


def decode(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_the_file_has_the_frames_and_they_look_like_the_source(clips):
    for clip in clips[:6]:
        frames = decode(clip.encode())
        assert frames.shape == (8, 64, 64, 3)
        assert np.abs(frames.astype(int) - clip.frames).mean() < 8
        assert clip.encode() == clip.encode()


def test_decoded_pixels_move_the_way_the_caption_says():
    source = MovingClips("test", max_objects=1, augment=False)
    seen = set()
    for i in range(24):
        clip = source[i]
        frames = decode(clip.encode()).astype(float)
        background = np.median(frames[0].reshape(-1, 3), axis=0)
        weight = np.abs(frames - background).sum(-1)
        weight[weight < 60] = 0
        y, x = np.mgrid[:64, :64]
        first, last = [(np.average(x, weights=w), np.average(y, weights=w)) for w in (weight[0], weight[-1])]
        dx, dy = last[0] - first[0], last[1] - first[1]
        motion = clip.objects[0].motion
        seen.add(motion)
        if motion == "still":
            assert max(abs(dx), abs(dy)) < 4
        else:
            moved = {"left": -dx, "right": dx, "up": -dy, "down": dy}[motion]
            assert moved > 12  # a quarter of 64, less what the codec and the threshold blur
    assert len(seen) >= 4


def test_objects_travel_a_quarter_of_the_canvas_at_constant_speed_in_their_lanes(clips):
    for clip in clips:
        for obj in clip.objects:
            starts = np.array([box[:2] for box in obj.boxes])
            travel = starts[-1] - starts[0]
            if obj.motion == "still":
                continue
            axis = 0 if obj.motion in {"left", "right"} else 1
            sign = -1 if obj.motion in {"left", "up"} else 1
            if np.ptp([box[2] - box[0] for box in obj.boxes]) == 0:  # no animation is playing
                assert sign * travel[axis] >= 16
                steps = np.diff(starts[:, axis])
                assert np.ptp(steps) <= 1
        for k in range(8):
            boxes = [obj.boxes[k] for obj in clip.objects]
            assert all(min(b) >= 0 and max(b) <= 64 for b in boxes)
            for i, a in enumerate(boxes):
                for b in boxes[:i]:
                    assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_captions_say_every_object_and_motion_in_lane_order(clips):
    for clip in clips:
        verbs = ["stays still" if obj.motion == "still" else f"moves {MOTIONS[obj.motion]}" for obj in clip.objects]
        parts = [f"{obj.phrase} {verb}" for obj, verb in zip(clip.objects, verbs, strict=True)]
        assert clip.caption.replace(" and ", ", ") == ", ".join(parts).replace(" and ", ", ")
        corners = [obj.boxes[0] for obj in clip.objects]
        assert corners == sorted(corners, key=lambda b: b[1]) or corners == sorted(corners)


def test_answers_follow_from_the_motions(clips):
    for i, clip in enumerate(clips):
        made = clip_questions(clip, np.random.default_rng(i), 4)
        assert {question.type for question in made} == set(CLIP_QUESTION_TYPES)
        for question in made:
            check_answer(clip, question)


def check_answer(clip: MovingClip, question) -> None:
    text, answer = question.question.removesuffix("?"), question.answer
    if question.type == "what" and text.startswith("what is"):
        lane = text.split(" ")[-1]
        assert [obj.name for obj in clip.objects if obj.lane == lane] == [answer]
    elif question.type == "what":
        verb = text.removeprefix("what ").replace("moves", "move").replace("stays", "stay")
        assert [obj.name for obj in clip.objects if does(obj, verb)] == [answer]
    elif question.type == "count":
        verb = text.removeprefix("how many things ")
        assert int(answer) == sum(verb == "are there" or does(obj, verb) for obj in clip.objects)
    else:
        subject = max((obj for obj in clip.objects if f" {definite(obj.name)} " in text), key=lambda o: len(o.name))
        if question.type == "direction":
            assert answer == ("it stays still" if subject.motion == "still" else subject.motion)
        else:
            verb = text.removeprefix(f"does {definite(subject.name)} ")
            assert (answer == "yes") == does(subject, verb)


def does(obj, verb: str) -> bool:
    if verb in {"move", "stay still"}:
        return (obj.motion == "still") == (verb == "stay still")
    return obj.motion != "still" and verb == f"move {MOTIONS[obj.motion]}"


def test_yes_and_no_and_directions_are_balanced():
    source = MovingClips("validation", frames=2, video_px=32)
    made = [source[i] for i in range(600)]
    yes = [clip_question_of_type(c, np.random.default_rng(i), "yesno").answer for i, c in enumerate(made)]
    ways = [clip_question_of_type(c, np.random.default_rng(i), "direction").answer for i, c in enumerate(made)]
    assert abs(np.mean([answer == "yes" for answer in yes]) - 0.5) < 0.07  # three standard deviations
    assert all(0.12 < ways.count(way) / len(ways) < 0.3 for way in set(ways))
    assert len(set(ways)) == 5


def test_negative_captions_are_false(clips):
    for i, clip in enumerate(clips):
        assert clip_negative_caption(clip, np.random.default_rng(i)) != clip.caption


def test_clips_show_the_cast_of_their_split_only():
    assert len(set(cast())) == len(cast()) == 153
    assert all(concepts()[i].phrase.startswith(("a ", "an ", "santa")) for i in cast())
    for split in ("train", "validation", "test"):
        source = MovingClips(split, frames=2, video_px=32)
        for i in range(60):
            shown = [obj.concept for obj in source[i].objects]
            assert set(shown) <= set(cast())
            assert split_of(shown) == split
