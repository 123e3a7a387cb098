"""English for the embedded world: plain names, noun phrases, relations and the records that hold language.

Everything is lower case and ASCII, without a final dot, so that a small vocabulary covers it:
`noun_phrase("red apple")` is "a red apple", `definite("grapes")` is "the grapes".
"""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np

GROUP_WORDS = {
    "animal": "animals",
    "plant": "plants",
    "food": "foods",
    "face": "faces",
    "person": "people",
    "body part": "body parts",
    "vehicle": "vehicles",
    "place": "places",
    "weather sign": "weather signs",
    "object": "objects",
    "activity": "activities",
    "symbol": "symbols",
}
"""Group word and its plural. "thing" is kept free for "any of them"."""


def _names(block: str) -> frozenset[str]:
    """Read a block of names that are separated by bars and line breaks."""
    return frozenset(name.strip() for name in block.strip().replace("\n", "|").split("|"))


# The nouns below break the rule "a or an by the first letter". The list was read off the 1,052 names.
_PLURAL = _names(
    """
    grapes|cherries|pancakes|peanuts|french fries|eyes|footprints|paw prints|houses|books|glasses|sunglasses
    jeans|skis|scissors|chains|revolving hearts|two hearts|hundred points|sweat droplets|clapping hands
    raising hands|open hands|folded hands|busts in silhouette|hot springs|fireworks|sparkles|japanese dolls
    admission tickets|flower playing cards|performing arts|prayer beads|musical notes|control knobs
    film frames|bookmark tabs|card index dividers|linked paperclips|crossed swords|shopping bags
    woman's clothes|clinking beer mugs|clinking glasses|crossed fingers|antenna bars|input numbers
    input symbols|input latin letters|clockwise vertical arrows|no bicycles|no pedestrians|no mobile phones
    """
)
_MASS = _names(
    """
    bread|bacon|sushi|sake|oden|dango|custard|curry rice|cooked rice|popcorn|spaghetti|shaved ice
    soft ice cream|ice cream|baguette bread|fire|fog|foggy|money with wings|zzz|tennis|bowling|field hockey
    ice hockey|ping pong|badminton|horse racing|camping|cooking|construction|building construction
    high voltage|nail polish|potable water|non-potable water|vibration mode|passport control|multiply|divide
    dashing away|children crossing|rolling on the floor laughing|locked|unlocked|locked with pen
    locked with key|copyright|registered|information|prohibited|customs|baggage claim|left luggage|no entry
    no smoking|no littering|no one under eighteen|radioactive|hourglass done|hourglass not done
    currency exchange|input latin uppercase|input latin lowercase
    """
)
_PROPER = _names(
    """
    santa claus|mrs claus|mount fuji|tokyo tower|om|aries|taurus|gemini|cancer|leo|virgo|libra|scorpio
    sagittarius|capricorn|aquarius|pisces|ophiuchus
    """
)
_CLOCK_HOURS = _names("one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve")
_AN = ("hourglass", "ng ", "sos ")
_A = ("unicorn", "euro ", "one-", "uniform", "european")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one input: its type ("what", "count", ...), the text and the one right answer."""

    type: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Region:
    """A referring expression with the box it points at: (x0, y0, x1, y1) in pixels."""

    text: str
    box: tuple[float, float, float, float]
    object_index: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence about one input, labelled "yes", "no" or "maybe" (the input cannot tell)."""

    text: str
    label: str


def plain_name(name: str) -> str:
    """Return a CLDR short name in plain words: lower case, ASCII, no quotation marks, colons or dots."""
    folded = unicodedata.normalize("NFKD", name.replace("\u2019", "'")).encode("ascii", "ignore").decode()
    for mark in ':!."':
        folded = folded.replace(mark, "")
    return " ".join(folded.lower().split())


@cache
def _is_clock_time(name: str) -> bool:
    hour, _, rest = name.replace("-", " ").partition(" ")
    return hour in _CLOCK_HOURS and rest in {"o'clock", "thirty"}


def is_plural(name: str) -> bool:
    """Tell whether a name takes "are" and "they"."""
    return name in _PLURAL


@cache
def noun_phrase(name: str) -> str:
    """Return the name with its indefinite article, or without one for plurals, materials and proper names."""
    if name in _PLURAL or name in _MASS or name in _PROPER or _is_clock_time(name):
        return name
    if name.startswith(_A):
        return f"a {name}"
    return f"an {name}" if name[0] in "aeiou8" or name.startswith(_AN) else f"a {name}"


@cache
def definite(name: str) -> str:
    """Return "the NAME", or the bare name when it is a proper name or a time of day."""
    return name if name in _PROPER or _is_clock_time(name) else f"the {name}"


def be(name: str) -> str:
    """Return the form of "to be" that agrees with a name."""
    return "are" if is_plural(name) else "is"


def join(phrases: list[str]) -> str:
    """Join phrases as "a", "a and b" or "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def pick(rng: np.random.Generator, options: list, weights: list[float] | None = None):
    """Draw one option, uniformly or in proportion to the weights."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    edges = np.cumsum(weights)
    return options[int(min(np.searchsorted(edges, rng.random() * edges[-1], side="right"), len(options) - 1))]
