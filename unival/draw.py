"""A picture from a caption: the model writes codes, a codec makes them a picture (specification 4.6 and 6.4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unival.checkpoint import load_model, resolve_model_dir
from unival.codec.base import load_codec, to_grid, to_picture
from unival.errors import UserError
from unival.evaluation.answering import generate
from unival.log import track
from unival.tasks.base import get_task

CODEC_FOLDER = "codec"  # in the folder of a model


def draw(
    captions: Sequence[str],
    model: str | Path,
    codec: str | Path | None = None,
    samples: int = 16,
    topk: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[np.ndarray]:
    """Draw a picture for each caption.

    Args:
        captions: What the pictures show.
        model: A model folder that was trained on `text_to_image`, or the name of a built-in model.
        codec: VQGAN checkpoint, or a folder of `unival codec train`; by default `codec/` in the model's folder.
        samples: Drawings per caption; the one whose codes are the most probable is returned.
        topk: Codes are drawn from so many of the most probable ones.
        temperature: Divides the logits.
        seed: Caption i is drawn with `seed + i`.

    Returns:
        Pictures, uint8 (H, W, 3).

    Raises:
        UserError: If model or codec are missing, do not fit, or a caption is empty.
    """
    empty = next((index for index, caption in enumerate(captions) if not caption.strip()), None)
    if empty is not None:
        raise UserError(f"caption {empty} is empty", fix="say what to draw")
    folder = resolve_model_dir(model)
    if codec is None and not (folder / CODEC_FOLDER).is_dir():
        fix = "give the codec that it was trained with (--codec)"
        raise UserError(f"the model has no codec: no folder {CODEC_FOLDER!r}", where=str(folder), fix=fix)
    network = load_codec(codec or folder / CODEC_FOLDER)
    loaded, processor = load_model(folder)
    task = get_task("text_to_image", {})
    options = {"sampling": True, "sampling_topk": topk, "temperature": temperature}
    pictures = []
    for index, caption in enumerate(track(captions, "draw", len(captions))):
        record = {"uid": str(index), "caption": caption}
        inputs = processor.collate([task.example(record)]).inputs
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + index)
            (text,) = generate(loaded, processor, task, inputs, samples, options)
        grid = to_grid(task.parse(text, record), network.num_codes)
        pictures.append(to_picture(network.decode(grid)[0]))
    return pictures
