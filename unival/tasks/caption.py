"""Captioning of images, videos and sounds (specification 4.2, 4.7, 4.9).

Record: {"uid": "7", "image": "a.jpg", "captions": ["A red apple above a cat."], "objects": ["red apple", "cat"]}
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from unival.batch import Example
from unival.data.clean import clean_caption
from unival.data.fields import given_captions
from unival.metrics import java_scores
from unival.metrics.bleu import bleu
from unival.metrics.caption_match import exact_match, name_precision, name_recall
from unival.metrics.cider import DocumentFrequencies, cider_d
from unival.metrics.ptb import ptb_tokenize
from unival.metrics.rouge import rouge_l
from unival.tasks.base import Scores, TaskArgs, is_clean

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
MAX_WORDS = {"finetune": 20, "pretrain": 30}


class Task(TaskArgs):
    """Describe a medium. `prompt` holds `{modality}`.

    Attributes:
        corrected: Ask about "the audio" of a sound. The original's fine-tuning asks about "the video", so the released
            checkpoints do, and so does the default; its pretraining (`wording: pretrain`) asks about "the audio".
        document_frequencies: File of `DocumentFrequencies` that CIDEr-D weighs n-grams by; by default those of the
            references of the split.
        num_unscored: Target tokens at the start without loss; the original's pretraining has 2 for CC12M.
        java_metrics: METEOR and SPICE among the numbers of the corpus (`pip install "unival[coco-java]"` and Java);
            where they cannot be computed, the evaluation says so before it begins.
    """

    monitor: ClassVar[str] = "cider_d"
    prompt: str = "what does the {modality} describe?"
    corrected: bool = False
    document_frequencies: str | None = None
    num_unscored: int = Field(default=0, ge=0)
    java_metrics: tuple[Literal["meteor", "spice"], ...] = ()

    def model_post_init(self, context: Any) -> None:
        """Refuse what cannot be computed here, before hours of predictions."""
        for name in self.java_metrics:
            java_scores.check_installed(name)

    def example(self, record: Mapping[str, Any]) -> Example:
        """Ask for a description; the target is the first reference."""
        is_quirk = self.modality == "audio" and self.wording == "finetune" and not self.corrected
        given = given_captions(record)
        return Example(
            uid=record["uid"],
            prompt=self.prompt.format(modality="video" if is_quirk else self.modality),
            target=self.target(given[0], record) if given else "",
            record=record,
            prompt_type=self.prompt_type,
            num_unscored=self.num_unscored,
            **self.media(record),
        )

    def target(self, caption: str, record: Mapping[str, Any]) -> str:
        """Return what the decoder learns to write: without punctuation in fine-tuning, lower case in pretraining."""
        if is_clean(record):
            return caption
        if self.wording == "pretrain":
            return clean_caption(caption, MAX_WORDS["pretrain"])
        return " ".join(without_punctuation(caption).split()[: MAX_WORDS["finetune"]])

    def parse(self, text: str, record: Mapping[str, Any]) -> str:
        """Return the caption without punctuation, as the original scores and submits it."""
        return text if is_clean(record) else without_punctuation(text)

    def is_labelled(self, record: Mapping[str, Any]) -> bool:
        """Return whether a prediction can be scored."""
        return bool(given_captions(record))

    def score(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> Scores:
        """Return CIDEr-D (0 to 10), exact match, and for records with `objects` whether exactly those are named."""
        refs = [references(record) for record in records]
        path = self.document_frequencies
        scores = {
            "cider_d": cider_d(predictions, refs, DocumentFrequencies.load(path) if path else None).per_sample,
            "exact": exact_match(predictions, refs).per_sample,
        }
        if all("objects" in record for record in records):
            objects = [
                [name if is_clean(record) else without_punctuation(name) for name in record["objects"]]
                for record in records
            ]
            vocabulary = frozenset(name for names in objects for name in names)
            pairs = list(zip(predictions, objects, strict=True))
            scores["names"] = np.array(
                [float(name_recall(p, o, vocabulary) == 1 and name_precision(p, o, vocabulary) == 1) for p, o in pairs]
            )
        return scores

    def corpus(self, predictions: Sequence[str], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the numbers of the COCO package: CIDEr, BLEU-1 to 4 and ROUGE-L over Penn Treebank words.

        And those of `java_metrics`.
        """
        given = [given_captions(record) for record in records]
        words = iter(ptb_tokenize([caption for captions in given for caption in captions]))
        refs = [[next(words) for _ in captions] for captions in given]
        written = ptb_tokenize(predictions)
        scores = {"cider": cider_d(written, refs)} | bleu(written, refs) | {"rouge_l": rouge_l(written, refs)}
        programs = {"meteor": java_scores.meteor, "spice": java_scores.spice}
        scores |= {name: programs[name](predictions, given) for name in self.java_metrics}  # they tokenise themselves
        return {name: score.value for name, score in scores.items()}


def without_punctuation(text: str) -> str:
    """Delete every ASCII punctuation character, and outer spaces."""
    return text.translate(NO_PUNCTUATION).strip()


def references(record: Mapping[str, Any]) -> list[str]:
    """Return the reference captions of a record as they are scored."""
    given = given_captions(record)
    return given if is_clean(record) else [without_punctuation(caption) for caption in given]
