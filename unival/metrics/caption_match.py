"""Matching captions with closed sets: exact match, and which named objects a caption mentions.

Example: caption "a cat face and a dog", scene ["cat face", "dog", "sun"], vocabulary of all names: recall
2/3, precision 1; "cat" is not mentioned, its only occurrence is inside "cat face".
"""

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from unival.errors import UserError
from unival.metrics.ngram import simple_tokenize
from unival.metrics.score import Score, check_references, mean_score

_USED = "."  # no token: punctuation is deleted from captions and names


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Score 1 if a prediction equals one of its references up to whitespace, else 0.

    Case and punctuation count.

    Raises:
        UserError: lengths differ, no sample, or a sample without references.
    """
    check_references(predictions, references)
    pairs = zip(predictions, references, strict=True)
    return mean_score([any(text.split() == other.split() for other in others) for text, others in pairs])


def mentioned_names(caption: str, vocabulary: Collection[str]) -> frozenset[str]:
    """Find the names of `vocabulary` that occur in `caption` as whole words, after `simple_tokenize` of both.

    Longest names are matched first and use up their words: in "a cat face", "cat" is not mentioned if "cat
    face" is a name too. Inflections do not match ("cats" is not "cat").

    Raises:
        UserError: `vocabulary` is a bare string.
    """
    words = simple_tokenize(caption).split()
    found = set()
    for length, names in _by_length(_extended(vocabulary, frozenset())):
        for start in range(len(words) - length + 1):
            window = tuple(words[start : start + length])
            if window in names:
                found.add(" ".join(window))
                words[start : start + length] = [_USED] * length
    return frozenset(found)


def name_recall(caption: str, names: Iterable[str], vocabulary: Collection[str] = ()) -> float:
    """Compute the fraction of the distinct `names` that the caption mentions; 1 if there are none.

    Args:
        caption: free text.
        names: the objects of the scene; repeated names count once.
        vocabulary: every name of the domain, so that "cat face" does not count as "cat"; `names` are added.

    Raises:
        UserError: `names` or `vocabulary` is a bare string.
    """
    wanted = _distinct(names)
    if not wanted:
        return 1.0
    return len(wanted & mentioned_names(caption, _extended(vocabulary, wanted))) / len(wanted)


def name_precision(caption: str, names: Iterable[str], vocabulary: Collection[str]) -> float:
    """Compute the fraction of the names of `vocabulary` mentioned by the caption that are among `names`.

    A caption that mentions nothing scores 0, so that silence does not pay; 1 if there was nothing to mention.

    Raises:
        UserError: `names` or `vocabulary` is a bare string.
    """
    allowed = _distinct(names)
    mentioned = mentioned_names(caption, _extended(vocabulary, allowed))
    if not mentioned:
        return float(not allowed)
    return len(mentioned & allowed) / len(mentioned)


def _extended(vocabulary: Collection[str], names: frozenset[str]) -> frozenset[str]:
    """Add `names` to the vocabulary; no copy if they are there, so that its index is found in the cache."""
    known = _tokenized(vocabulary if isinstance(vocabulary, str | frozenset) else frozenset(vocabulary))
    return known if names <= known else known | names


def _distinct(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise UserError("names are one string", where=repr(names[:60]), fix="pass a list of names")
    return frozenset(simple_tokenize(name) for name in names) - {""}


_tokenized = lru_cache(maxsize=8)(_distinct)


@lru_cache(maxsize=64)
def _by_length(vocabulary: frozenset[str]) -> list[tuple[int, frozenset[tuple[str, ...]]]]:
    """Group names by their number of words, most words first."""
    groups: dict[int, set[tuple[str, ...]]] = {}
    for name in vocabulary:
        words = tuple(name.split())
        groups.setdefault(len(words), set()).add(words)
    return [(length, frozenset(groups[length])) for length in sorted(groups, reverse=True)]
