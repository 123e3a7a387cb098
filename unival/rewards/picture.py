"""Reward of pictures that the model writes as codes: do they show what the caption says?

    get_reward("clip_score", {"codec": "models/vqgan", "clip": "models/clip-vit-base-patch16"})

The codes are decoded and the picture is compared with the caption by a CLIP model from local files.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unival.rewards.record import Record, Rewards, captions, empty

if TYPE_CHECKING:
    from PIL import Image

    from unival.codec.base import ImageCodec
    from unival.metrics.feature_models import ClipModel

CodesPrediction = str | Sequence[int]
_CODE = re.compile(r"<code_(\d+)>")


def clip_score(
    predictions: Sequence[CodesPrediction],
    records: Sequence[Record],
    *,
    codec: Path,
    clip: Path,
    architecture: str = "",
    device: str = "cpu",
) -> Rewards:
    """Score the cosine of the CLIP embeddings of the picture and of the first caption, -1 to 1.

    Codes fill a square row by row; those beyond the largest square are left out, and a prediction without any scores 0.
    The original multiplies by 2.5 (specification 7.4): that is the weight of this reward.

    Args:
        predictions: Texts such as `<code_3><code_17>`, or numbers.
        records: Their captions.
        codec: Of the codes: a VQGAN checkpoint, or a folder of `unival codec train`.
        clip: A folder of `transformers` with a CLIP model; with `architecture` the weights of an open_clip model.
        architecture: Of an open_clip model, such as `ViT-B-16`, which the original uses.
        device: Where to run.
    """
    from unival.metrics.fid import clip_similarity

    network, tower = _codec(str(codec), device), _clip(str(clip), architecture, device)
    texts = [own[0] for own in captions(predictions, records)]
    grids = [_square(codes) for codes in predictions]
    drawn = [index for index, codes in enumerate(grids) if codes]
    if not drawn:
        return np.zeros(len(grids)) if grids else empty()
    scores = np.zeros(len(grids))
    pictures = tower.images([_draw(network, grids[index]) for index in drawn])
    found = clip_similarity(pictures, tower.texts([texts[index] for index in drawn]))
    scores[drawn] = found.per_sample / 100.0
    return scores


def _square(prediction: CodesPrediction) -> list[int]:
    codes = [int(code) for code in _CODE.findall(prediction)] if isinstance(prediction, str) else list(prediction)
    return codes[: isqrt(len(codes)) ** 2]


def _draw(codec: "ImageCodec", codes: Sequence[int]) -> "Image.Image":
    """Return the picture; one at a time, as a batch of 20 would take a gigabyte."""
    from PIL import Image

    from unival.codec.base import to_grid, to_picture

    return Image.fromarray(to_picture(codec.decode(to_grid(codes, codec.num_codes))[0]))


@lru_cache(maxsize=1)
def _codec(path: str, device: str) -> "ImageCodec":
    from unival.codec.base import load_codec

    return load_codec(path, device)


@lru_cache(maxsize=1)
def _clip(path: str, architecture: str, device: str) -> "ClipModel":
    from unival.metrics.feature_models import load_clip, load_clip_folder

    return load_clip(architecture, path, device) if architecture else load_clip_folder(path, device)
