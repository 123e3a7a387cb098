"""Referring expressions, entailment statements and wrong captions for image scenes.

A statement is "yes" (true of the picture), "no" (false of it) or "maybe" (about something that is there,
but the picture cannot tell). The sentences that are "maybe" about a thing that is there are "no" about one
that is not.
"""

import numpy as np

from unival.data import world
from unival.data.language import Region, Statement, be, definite, pick
from unival.data.questions import absent_concept, absent_group, group_phrase, references
from unival.data.scenes import Scene, describe

LABELS = ("yes", "no", "maybe")

_UNKNOWABLE_OF_ONE = (
    "somebody likes {a}",
    "somebody bought {a} yesterday",
    "{a} will be gone tomorrow",
    "{a} came here last week",
    "a friend asked for {a}",
    "nobody remembers {a}",
)
_UNKNOWABLE_OF_TWO = (
    "{a} came here before {b}",
    "somebody prefers {a} to {b}",
    "{a} will stay longer than {b}",
    "{a} and {b} belong to a friend",
)


def regions(scene: Scene, rng: np.random.Generator, n: int) -> list[Region]:
    """Return up to n different expressions that each point at exactly one object.

    60 % are names ("red apple"), 25 % relations ("the thing left of the cat"), 15 % places ("the thing at
    the top left"); a scene of one object has its name only.
    """
    by_place = references(scene)
    found: dict[str, Region] = {}
    for _ in range(8 * n):
        kind = rng.random()
        if kind < 0.6 or not by_place:
            index = int(rng.integers(len(scene.objects)))
            text = scene.objects[index].name
        else:
            options = [place for place in by_place if place[0].startswith("at the ") == (kind > 0.85)]
            place, index = pick(rng, options)
            text = f"the thing {place}"
        found.setdefault(text, Region(text, scene.objects[index].box, index))
        if len(found) == n:
            break
    return list(found.values())


def statements(scene: Scene, rng: np.random.Generator, n: int) -> list[Statement]:
    """Return n statements (all different as far as the scene allows) with the three labels spread evenly."""
    makers = {"yes": _true, "no": _false, "maybe": _unknowable}
    found: list[Statement] = []
    while len(found) < n:
        for position in rng.permutation(3).tolist()[: n - len(found)]:
            label = LABELS[position]
            text = makers[label](scene, rng)
            for _ in range(8):
                if all(text != statement.text for statement in found):
                    break
                text = makers[label](scene, rng)
            found.append(Statement(text, label))
    return found


def negative_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return the caption with one object replaced or with the relation swapped; never true."""
    phrases = [obj.phrase for obj in scene.objects]
    rows = [obj.row for obj in scene.objects]
    if len(phrases) > 1 and rng.random() < 0.35:
        # The first object and one of the other side of "left of" or "above" change places.
        others = [1] if scene.layout == "row" else [i for i, row in enumerate(rows) if row == 1]
        other = pick(rng, others)
        phrases[0], phrases[other] = phrases[other], phrases[0]
    else:
        concept = world.concepts()[absent_concept(scene, rng)]
        phrases[int(rng.integers(len(phrases)))] = concept.phrase
    return describe(scene.layout, phrases, rows)


def _relation(scene: Scene, rng: np.random.Generator, is_true: bool) -> str:
    subject, relation, anchor = pick(rng, list(scene.relations))
    if not is_true:
        subject, anchor = anchor, subject
    name = scene.objects[subject].name
    return f"{definite(name)} {be(name)} {relation} {definite(scene.objects[anchor].name)}"


def _true(scene: Scene, rng: np.random.Generator) -> str:
    obj = pick(rng, list(scene.objects))
    kind = rng.random()
    if kind < 0.35 and len(scene.objects) > 1:
        return _relation(scene, rng, is_true=True)
    if kind < 0.6:
        return f"there is {group_phrase(obj.group)}"
    return f"there {be(obj.name)} {obj.phrase}"


def _false(scene: Scene, rng: np.random.Generator) -> str:
    absent = world.concepts()[absent_concept(scene, rng)]
    kind = rng.random()
    if kind < 0.3:
        return _unknowable(scene, rng, absent.name)
    if kind < 0.55 and len(scene.objects) > 1:
        return _relation(scene, rng, is_true=False)
    if kind < 0.72:
        return f"there is {group_phrase(absent_group({obj.group for obj in scene.objects}, rng))}"
    return f"there {be(absent.name)} {absent.phrase}"


def _unknowable(scene: Scene, rng: np.random.Generator, absent: str | None = None) -> str:
    """Fill a sentence that a picture cannot decide; `absent` takes the place of one of the objects."""
    names = [scene.objects[i].name for i in rng.permutation(len(scene.objects)).tolist()]
    if len(names) > 1 and rng.random() < 0.4:
        if absent:
            names[int(rng.integers(2))] = absent
        return pick(rng, list(_UNKNOWABLE_OF_TWO)).format(a=definite(names[0]), b=definite(names[1]))
    return pick(rng, list(_UNKNOWABLE_OF_ONE)).format(a=definite(absent or names[0]))
