"""VQA accuracy: an answer is right if three of the ten people said it (Antol et al. 2015, arXiv:1505.00468).

The rule, from https://visualqa.org/evaluation.html: normalise, then average min(1, matches / 3) over the
leave-one-out subsets of the people's answers. A question with a single answer is scored by exact match of the
normalised strings.

Example: {"answers": ["cat", "cat", "dog", "cat", ...]} and the prediction "a cat".
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from unival.errors import UserError
from unival.metrics.score import Score, check_pairs, mean_score

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe (possessives), not the colon (times)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # the official pattern means to spare only decimals, and spares every ".5"
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS: dict[str, str] = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've
    mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
    something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've
    who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Map each contraction written with one apostrophe missing to its full form.

    Most forms that are other words without their apostrophe (its, ill, well, shed, wed) are absent, as
    officially.
    """
    table = {
        form[:place] + form[place + 1 :]: form
        for form in _CONTRACTED.split()
        for place, letter in enumerate(form)
        if letter == "'"
    }
    # The official table has this pair the wrong way round, and scores depend on it.
    table["somebody'd"] = "somebodyd"
    return table


_CONTRACTIONS = _contractions()


def normalize_answer(answer: str) -> str:
    """Bring an answer to the form that VQA compares: "The 2 cats'  toy, red." -> "2 cats' toy red".

    Lower-case; punctuation deleted where it touches a space or if the answer holds a number such as "1,000",
    else replaced by a space; periods deleted except before a digit; number words up to ten to digits;
    articles dropped; apostrophes restored in contractions. Normalising twice changes nothing.
    """
    return _normalize_words(_strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))


def _strip_punctuation(text: str) -> str:
    holds_number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        if mark in text:
            touches_space = f"{mark} " in text or f" {mark}" in text
            stripped = stripped.replace(mark, "" if touches_space or holds_number else " ")
    return _PERIOD.sub("", stripped)


def _normalize_words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


# Training scores the same reference answers again and again.
_normalized = lru_cache(maxsize=1 << 16)(normalize_answer)


def _agreement(matches: int, num_answers: int) -> float:
    """Average min(1, n / 3) over the subsets that leave one answer out; exact match for one answer.

    A subset that left out one of the `matches` holds one match less.
    """
    if num_answers == 1:
        return float(matches)
    left_in = (num_answers - matches) * min(1.0, matches / 3)
    left_out = matches * min(1.0, (matches - 1) / 3) if matches else 0.0
    return (left_in + left_out) / num_answers


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """Compute the accuracy that each given answer would get, best first: the soft targets of VQA training.

    For ten answers an answer given once is worth 0.3, twice 0.6, three times 0.9, more often 1. Keys are
    normalised. With two or three answers in all, the rule never reaches 1 (officially there are always ten).

    Raises:
        UserError: no answer, or a bare string.
    """
    _check_answers(answers, "answers")
    counts = Counter(_normalized(answer) for answer in answers)
    return {answer: _agreement(count, len(answers)) for answer, count in counts.most_common()}


def vqa_accuracy(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, official_references: bool = False
) -> Score:
    """Score predicted answers.

    Args:
        predictions: one answer per question; normalised here.
        answers: the people's answers to each question, usually ten; at least one.
        official_references: treat references as the official script does, which strips their punctuation
            only, and only if they are not all the same, because those of VQA v2 are already normalised.
            Needed for raw answers only, and to reproduce the official number there: "two" then never matches
            "2".

    Returns:
        Accuracies in [0, 1].

    Raises:
        UserError: lengths differ, no question, or a question without answers.
    """
    check_pairs(predictions, answers, "answer lists")
    scores = []
    for index, (prediction, given) in enumerate(zip(predictions, answers, strict=True)):
        _check_answers(given, f"answers[{index}]")
        references = _official(given) if official_references else [_normalized(answer) for answer in given]
        scores.append(_agreement(references.count(normalize_answer(prediction)), len(references)))
    return mean_score(scores)


def _official(answers: Sequence[str]) -> list[str]:
    return [_strip_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)


def _check_answers(answers: Sequence[str], where: str) -> None:
    if isinstance(answers, str) or not answers:
        what = "answers are one string" if isinstance(answers, str) else "a question has no answer"
        raise UserError(what, where=where, fix='give a list, such as ["cat", "cat", "dog"]')
