"""Rewards of answers to questions."""

from collections.abc import Collection, Sequence

import numpy as np

from unival.metrics import bleu
from unival.metrics import vqa_accuracy as vqa
from unival.rewards.record import Record, Rewards, array, empty, fields


def vqa_accuracy(
    predictions: Sequence[str],
    records: Sequence[Record],
    *,
    types: Collection[str] = (),
    answers: Collection[str] = (),
) -> Rewards:
    """Score an answer by the VQA rule against the record's answers.

    With `types`, an answer to a question of another `question_type` scores 0 and stays a sample, as with the sizes of
    `box_accuracy`: the rewards of all types add up to the accuracy. With `answers`, so does an answer to a question
    that is rightly answered otherwise: rewards for the answers "yes" and "no" are sensitivity and specificity, each
    times the share of its questions.
    """
    if not predictions:
        return empty()
    right = fields(predictions, records, "answers")
    counts = np.ones(len(records), dtype=bool)
    if types:
        counts &= [kind in types for kind in fields(predictions, records, "question_type")]
    if answers:
        wanted = set(answers)
        counts &= [not wanted.isdisjoint(found) for found in right]
    return vqa.vqa_accuracy(predictions, right).per_sample * counts


def answer_bleu1(predictions: Sequence[str], records: Sequence[Record]) -> Rewards:
    """Score an answer by BLEU-1 against each of the record's answers, averaged (the VQA rewards of rewarded soups)."""
    pairs = zip(predictions, fields(predictions, records, "answers"), strict=True)
    return array(
        bleu.bleu([text] * len(answers), [[answer] for answer in answers])["bleu1"].per_sample.mean()
        for text, answers in pairs
    )
