"""ROUGE-L, the F-measure of the longest common subsequence (Lin 2004, aclanthology.org/W04-1013, section 3).

Equal to `pycocoevalcap`'s Rouge: beta 1.2, and precision and recall are each the best over the references,
possibly of two different references. An empty prediction scores 0.
"""

from collections.abc import Sequence

from unival.metrics.score import Score, check_references, mean_score

BETA = 1.2


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """Score captions, split on whitespace, each against its non-empty sequence of references; from 0 to 1.

    Raises:
        UserError: lengths differ, no sample, or a sample without references.
    """
    check_references(predictions, references)
    return mean_score([_score(text, captions) for text, captions in zip(predictions, references, strict=True)])


def _score(prediction: str, references: Sequence[str]) -> float:
    words = prediction.split()
    positions = _positions(words)
    precision = recall = 0.0
    for reference in references:
        reference_words = reference.split()
        common = _common_subsequence(positions, len(words), reference_words)
        if common:
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(reference_words))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _positions(words: list[str]) -> dict[str, int]:
    """Give each word the bit mask of its places."""
    masks: dict[str, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    return masks


def _common_subsequence(positions: dict[str, int], num_words: int, other: list[str]) -> int:
    """Compute the length of the longest common subsequence, a table column per operation.

    Bit i of `row` is 0 where the table grows between prefixes of i and i + 1 words (Hyyrö 2004, "Bit-parallel
    LCS-length computation revisited").
    """
    row = full = (1 << num_words) - 1
    for word in other:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return num_words - row.bit_count()
