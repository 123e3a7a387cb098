"""Questions about image scenes, computed from the ground truth, each with exactly one right answer.

Types: "what" (a name), "count" (0 to 4), "where" (a position), "group" (a group word), "color" (a
background), "yesno". The answer side is drawn before the wording, so that answers are balanced within a
type as far as the pictures allow; "yes" and "no" are exactly even in expectation, and half of the absent
things that are asked about are of the same group as something present.
"""

import numpy as np

from unival.data import world
from unival.data.language import GROUP_WORDS, Question, be, definite, noun_phrase, pick
from unival.data.scenes import Scene

QUESTION_TYPES = ("what", "count", "where", "group", "color", "yesno")

# Higher counts are possible in fewer scenes, so they are taken more often when they are possible.
_COUNT_WEIGHTS = {0: 0.09, 1: 0.13, 2: 0.3, 3: 1.2, 4: 1.2}


def question_of_type(scene: Scene, rng: np.random.Generator, type: str) -> Question | None:
    """Return a random question of one type, or None if there is none ("where" needs two objects)."""
    made = _MAKERS[type](scene, rng)
    return None if made is None else Question(type, *made)


def questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Question]:
    """Return up to n different questions, types spread evenly; fewer only if there are no more."""
    return spread(lambda type: question_of_type(scene, rng, type), QUESTION_TYPES, rng, n)


def lookup_questions(scene: Scene, rng: np.random.Generator, n: int) -> list[Question]:
    """Return up to n questions for which the picture is searched for what the text names: where is it, is it there?"""

    def make(type: str) -> Question | None:
        made = _where(scene, rng) if type == "where" else _yesno(scene, rng, "name")
        return None if made is None else Question(type, *made)

    return spread(make, ("where", "yesno"), rng, n)


def spread(make, types: tuple[str, ...], rng: np.random.Generator, n: int) -> list[Question]:
    """Call `make` with every type in random order, round by round, until n different questions are found."""
    found: dict[str, Question] = {}
    for _ in range(n + 4):
        for position in rng.permutation(len(types)).tolist():
            question = make(types[position]) if len(found) < n else None
            if question is not None:
                found.setdefault(question.question, question)
    return list(found.values())


def group_phrase(group: str) -> str:
    """Return a group word with its article: "an animal", "food"."""
    return group if group == "food" else noun_phrase(group)


def absent_concept(scene: Scene, rng: np.random.Generator) -> int:
    """Draw a concept of the scene's pool that is not present: half of the time from the group of something present."""
    present = [obj.concept for obj in scene.objects]
    pool = scene.pool
    if rng.random() < 0.5:
        group = world.concepts()[pick(rng, present)].group
        kin = [index for index in pool if world.concepts()[index].group == group]
        pool = kin if set(kin) - set(present) else pool
    while True:
        index = pool[int(rng.integers(len(pool)))]
        if index not in present:
            return index


def absent_group(present: set[str], rng: np.random.Generator) -> str:
    """Draw a group that is not present, as often as groups occur, so that the word gives nothing away."""
    groups = [group for group in GROUP_WORDS if group not in present]
    return pick(rng, groups, [float(len(world.concepts_by_group()[group])) for group in groups])


def references(scene: Scene) -> list[tuple[str, int]]:
    """Return all unique descriptions by place: ("left of the cat", 1), ("at the top left", 0)."""
    if len(scene.objects) == 1:
        return []
    found: dict[tuple[str, int], list[int]] = {}
    for subject, relation, anchor in scene.relations:
        found.setdefault((relation, anchor), []).append(subject)
    by_relation = [
        (f"{relation} {definite(scene.objects[anchor].name)}", subjects[0])
        for (relation, anchor), subjects in found.items()
        if len(subjects) == 1
    ]
    return by_relation + [(f"at the {obj.position}", i) for i, obj in enumerate(scene.objects)]


def _reference(scene: Scene, rng: np.random.Generator) -> tuple[str, int]:
    """Draw a description by relation or by position, evenly."""
    options = references(scene)
    is_position = rng.random() < 0.5
    return pick(rng, [option for option in options if option[0].startswith("at the ") == is_position])


def _what(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    if len(scene.objects) == 1:
        return "what is this?", scene.objects[0].name
    place, index = _reference(scene, rng)
    return f"what is {place}?", scene.objects[index].name


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    counts = dict.fromkeys(GROUP_WORDS, 0)
    for obj in scene.objects:
        counts[obj.group] += 1
    answers = sorted({0, len(scene.objects), *counts.values()})
    answer = pick(rng, answers, [_COUNT_WEIGHTS[value] for value in answers])
    if answer == 0:
        word = absent_group({group for group, count in counts.items() if count}, rng)
        return f"how many {GROUP_WORDS[word]} are there?", "0"
    words = [GROUP_WORDS[group] for group, count in counts.items() if count == answer]
    if answer == len(scene.objects):
        words.append("things")
    return f"how many {pick(rng, words)} are there?", str(answer)


def _where(scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
    if len(scene.objects) == 1:
        return None
    obj = pick(rng, list(scene.objects))
    return f"where {be(obj.name)} {definite(obj.name)}?", obj.position


def _group(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    if len(scene.objects) == 1:
        return "what kind of thing is this?", scene.objects[0].group
    sizes = world.concepts_by_group()
    target = pick(rng, list(range(len(scene.objects))), [1 / len(sizes[obj.group]) for obj in scene.objects])
    place = pick(rng, [place for place, index in references(scene) if index == target])
    return f"what kind of thing is {place}?", scene.objects[target].group


def _color(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    return "what color is the background?", scene.background


def _yesno(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> tuple[str, str]:
    is_yes = rng.random() < 0.5
    kind = kind or pick(rng, ["name", "name", "group", "relation", "relation"])
    if kind == "relation" and len(scene.objects) > 1:
        subject, relation, anchor = pick(rng, list(scene.relations))
        if not is_yes:
            subject, anchor = anchor, subject
        name, other = scene.objects[subject].name, scene.objects[anchor].name
        text = f"{be(name)} {definite(name)} {relation} {definite(other)}?"
    elif kind == "group":
        present = {obj.group for obj in scene.objects}
        group = pick(rng, sorted(present)) if is_yes else absent_group(present, rng)
        text = f"is there {group_phrase(group)}?"
    else:
        present = [obj.concept for obj in scene.objects]
        index = pick(rng, present) if is_yes else absent_concept(scene, rng)
        concept = world.concepts()[index]
        text = f"{be(concept.name)} there {concept.phrase}?"
    return text, "yes" if is_yes else "no"


_MAKERS = {
    "what": _what,
    "count": _count,
    "where": _where,
    "group": _group,
    "color": _color,
    "yesno": _yesno,
}
