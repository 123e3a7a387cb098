"""Words and n-grams of a caption, e.g. "a cat" -> {("a",): 1, ("cat",): 1, ("a", "cat"): 1}.

Metrics split on whitespace: the text is expected to be clean. `simple_tokenize` makes it so.
"""

import string
from collections.abc import Sequence

Ngram = tuple[str, ...]

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def simple_tokenize(text: str) -> str:
    """Lower-case, delete ASCII punctuation and collapse whitespace: "A cat's  toy." -> "a cats toy".

    Punctuation is deleted, not replaced by a space, as UnIVAL does before scoring captions: "t-shirt" stays
    one word.
    """
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def count_ngrams(words: Sequence[str], max_n: int) -> dict[Ngram, int]:
    """Count the n-grams of length 1 to `max_n`; empty for no words."""
    words = tuple(words)  # its slices are the keys
    counts: dict[Ngram, int] = {}
    for n in range(1, max_n + 1):
        for start in range(len(words) - n + 1):
            ngram = words[start : start + n]
            counts[ngram] = counts.get(ngram, 0) + 1
    return counts
