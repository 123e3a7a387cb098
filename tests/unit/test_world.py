"""The embedded world: assets, names, splits, scenes; answers are derived again from the boxes alone."""

from pathlib import Path

import numpy as np
import pytest

import unival
from unival.data import world
from unival.data.language import GROUP_WORDS, definite, noun_phrase, plain_name
from unival.data.questions import QUESTION_TYPES, question_of_type, questions
from unival.data.scenes import ImageScenes, Scene
from unival.data.statements import negative_caption, regions, statements
from unival.errors import UserError

ROOT = Path(__file__).parents[2]
NUMBER = {str(i): i for i in range(5)}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    train, test = ImageScenes("train"), ImageScenes("test", styles=("twemoji",))
    return [train[i] for i in range(150)] + [test[i] for i in range(150)]


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def holds(first, relation: str, second) -> bool:
    """Judge a relation by the centres of two boxes: the larger offset decides."""
    dx, dy = (b - a for a, b in zip(centre(first), centre(second), strict=True))
    directions = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}
    along, across = directions[relation]
    return along > abs(across)


def found_at(scene: Scene, text: str):
    """Return the objects that "left of the cat" or "at the top left" describes, from the boxes."""
    size = scene.image.shape[0]
    if text.startswith("at the "):
        wanted = set(text.removeprefix("at the ").split())
        sides = {
            "left": lambda x, y: x < size * 0.45,
            "right": lambda x, y: x > size * 0.55,
            "top": lambda x, y: y < size * 0.45,
            "bottom": lambda x, y: y > size * 0.55,
        }
        return [o for o in scene.objects if all(sides[word](*centre(o.box)) for word in wanted)]
    anchors = [o for o in scene.objects if text.endswith(f" {definite(o.name)}")]
    anchor = max(anchors, key=lambda o: len(o.name))
    relation = text.removesuffix(f" {definite(anchor.name)}")
    others = [o for o in scene.objects if o is not anchor]
    is_left, is_top = (value < size / 2 for value in centre(anchor.box))
    if relation in {"left of", "right of"} and len(scene.objects) > 2:
        others = [o for o in others if (centre(o.box)[1] < size / 2) == is_top]
    elif relation in {"above", "below"} and len(scene.objects) == 4:
        others = [o for o in others if (centre(o.box)[0] < size / 2) == is_left]
    elif relation in {"above", "below"} and len(scene.objects) == 3:
        return [o for o in others if (centre(o.box)[1] < size / 2) != is_top == (relation == "below")]
    return [o for o in others if holds(o.box, relation, anchor.box)]


def test_the_assets_fit_the_budget_and_nothing_is_missing():
    folder = Path(unival.__file__).parent / "assets/world"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3_000_000
    assert len(world.concepts()) == 1052
    assert world.styles() == ("fluent-emoji-flat", "noto", "twemoji")
    assert len(world.animated_rows()) == 50
    assert len(world.animation(next(iter(world.animated_rows())))) == 8


def test_every_concept_is_drawn_in_every_style():
    for style in world.styles():
        for concept in world.concepts():
            sprite = world.sprite(style, concept.index)
            assert max(sprite.size) >= 8
            assert sprite.getextrema()[3][1] > 200


def test_names_are_unique_plain_and_grouped():
    names = [concept.name for concept in world.concepts()]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and name == name.lower() and not set(name) & set('.:"!?') for name in names)
    assert {concept.group for concept in world.concepts()} == set(GROUP_WORDS)


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("red apple", "a red apple"),
        ("orange book", "an orange book"),
        ("unicorn", "a unicorn"),
        ("hourglass not done", "hourglass not done"),
        ("grapes", "grapes"),
        ("ng button", "an ng button"),
        ("eight-pointed star", "an eight-pointed star"),
        ("eight o'clock", "eight o'clock"),
        ("santa claus", "santa claus"),
    ],
)
def test_noun_phrases_take_the_right_article(name, phrase):
    assert noun_phrase(name) == phrase


def test_official_names_become_plain():
    assert plain_name("keycap: 1") == "keycap 1"
    assert plain_name("twelve o\u2019clock") == "twelve o'clock"
    assert plain_name("Japanese \u201chere\u201d button") == "japanese here button"
    assert plain_name("Mrs. Claus") == "mrs claus"


def test_captions_follow_the_layout(scenes):
    seen = set()
    for scene in scenes:
        phrases = [obj.phrase for obj in scene.objects]
        expected = {
            "single": "{0}",
            "row": "{0} left of {1}",
            "column": "{0} above {1}",
            "two above one": "{0} and {1} above {2}",
            "one above two": "{0} above {1} and {2}",
            "two above two": "{0} and {1} above {2} and {3}",
        }[scene.layout].format(*phrases)
        assert scene.caption == expected
        seen.add(scene.layout)
    assert len(seen) == 6


def test_relations_agree_with_the_boxes(scenes):
    for scene in scenes:
        for subject, relation, anchor in scene.relations:
            first, second = scene.objects[subject], scene.objects[anchor]
            if first.row == second.row or scene.layout in {"column", "two above two"}:
                assert holds(first.box, relation, second.box), scene.caption
            else:
                is_above = centre(first.box)[1] < centre(second.box)[1]
                assert is_above == (relation == "above")


def test_answers_are_what_the_boxes_say(scenes):
    counted = dict.fromkeys(QUESTION_TYPES, 0)
    for i, scene in enumerate(scenes):
        for question in questions(scene, np.random.default_rng(i), 8):
            counted[question.type] += 1
            check_answer(scene, question)
    assert min(counted.values()) > 200


def check_answer(scene: Scene, question) -> None:
    text, answer = question.question.removesuffix("?"), question.answer
    by_name = {obj.name: obj for obj in scene.objects}
    if question.type in {"what", "group"}:
        place = text.removeprefix("what is ").removeprefix("what kind of thing is ")
        (target,) = scene.objects if place == "this" else found_at(scene, place)
        assert answer == (target.name if question.type == "what" else target.group)
    elif question.type == "where":
        (target,) = found_at(scene, f"at the {answer}")
        assert text in {f"where {be} {definite(target.name)}" for be in ("is", "are")}
    elif question.type == "color":
        assert answer == scene.background
    elif question.type == "count":
        word = text.removeprefix("how many ").removesuffix(" are there")
        members = [obj for obj in scene.objects if word in {"things", GROUP_WORDS[obj.group]}]
        assert NUMBER[answer] == len(members)
    elif " there " in text:
        thing = text.split(" there ", 1)[1]
        present = {obj.phrase for obj in scene.objects} | {obj.group for obj in scene.objects}
        present |= {noun_phrase(obj.group) for obj in scene.objects}
        assert (answer == "yes") == (thing in present)
    else:
        starts = [n for n in by_name if text.split(" ", 1)[1].startswith(definite(n) + " ")]
        subject = max(starts, key=len)
        rest = text.split(" ", 1)[1].removeprefix(definite(subject) + " ")
        assert (answer == "yes") == (by_name[subject] in found_at(scene, rest))


def test_yes_and_no_are_even_for_every_kind_of_question():
    scenes = ImageScenes("validation", image_px=24)
    answers = [question_of_type(scenes[i], np.random.default_rng(i), "yesno") for i in range(1000)]
    share = np.mean([question.answer == "yes" for question in answers if question])
    assert abs(share - 0.5) < 0.05  # three standard deviations of 1000 draws


def test_no_question_type_is_answered_by_its_most_frequent_answer():
    scenes = ImageScenes("validation", image_px=24)
    answers: dict[str, list[str]] = {}
    for i in range(600):
        for question in questions(scenes[i], np.random.default_rng(i), 6):
            answers.setdefault(question.type, []).append(question.answer)
    most = {kind: max(map(given.count, set(given))) / len(given) for kind, given in answers.items()}
    assert most["what"] < 0.02
    assert most["where"] < 0.2
    assert most["group"] < 0.2
    assert most["count"] < 0.32
    assert most["color"] < 0.36


def test_regions_point_at_exactly_one_object(scenes):
    for i, scene in enumerate(scenes):
        found = regions(scene, np.random.default_rng(i), 4)
        assert found
        assert len({region.text for region in found}) == len(found)
        for region in found:
            target = scene.objects[region.object_index]
            assert region.box == target.box
            if region.text.startswith("the thing "):
                assert found_at(scene, region.text.removeprefix("the thing ")) == [target]
            else:
                assert region.text == target.name


def test_statements_are_balanced_and_their_labels_are_right(scenes):
    for i, scene in enumerate(scenes):
        made = statements(scene, np.random.default_rng(i), 6)
        labels = [statement.label for statement in made]
        assert {label: labels.count(label) for label in labels} == {"yes": 2, "no": 2, "maybe": 2}
        present = {obj.phrase for obj in scene.objects} | {obj.group for obj in scene.objects}
        present |= {noun_phrase(obj.group) for obj in scene.objects}
        for statement in made:
            if statement.text.startswith(("there is ", "there are ")):
                thing = statement.text.split(" ", 2)[2]
                assert (statement.label == "yes") == (thing in present)
            if statement.label == "maybe":
                assert any(definite(obj.name) in statement.text for obj in scene.objects)


def test_negative_captions_are_false(scenes):
    for i, scene in enumerate(scenes):
        wrong = negative_caption(scene, np.random.default_rng(i))
        assert wrong != scene.caption
        assert wrong.count(" above ") == scene.caption.count(" above ")


def test_unknown_names_are_refused_with_the_valid_ones():
    with pytest.raises(UserError, match="twemoji"):
        ImageScenes("train", styles=("crayon",))
    with pytest.raises(UserError, match="validation"):
        ImageScenes("valid")
    with pytest.raises(UserError, match="1 to 4"):
        ImageScenes("train", max_objects=9)


def test_the_notice_names_every_source():
    notice = (ROOT / "NOTICE").read_text("utf-8")
    for source in ("Fluent Emoji", "Noto Emoji", "Twemoji", "Emojibase", "Unicode", "LobeHub", "Sonic Pi"):
        assert source in notice
    for licence in ("MIT License", "Apache License 2.0", "CC-BY 4.0", "CC0 1.0", "Unicode License V3"):
        assert licence in notice
