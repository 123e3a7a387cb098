"""A picture from a caption: the model writes codes, a codec makes them a picture (specification 4.6 and 6.4)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unival.checkpoint import load_model, resolve_model_dir
from unival.codec.base import load_codec, to_grid, to_picture
from unival.device import find_device
from unival.errors import UserError
from unival.evaluation.answering import hypotheses
from unival.log import track
from unival.model.modeling import UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.tasks.base import get_task

CODEC_FOLDER = "codec"  # in the folder of a model


def draw(
    captions: Sequence[str],
    model: str | Path,
    codec: str | Path | None = None,
    samples: int = 1,
    topk: int = 256,
    temperature: float = 1.0,
    seed: int = 0,
    judge: str | Path | None = None,
    device: str = "auto",
) -> list[np.ndarray]:
    """Draw a picture for each caption.

    Args:
        captions: What the pictures show.
        model: A model folder that was trained on `text_to_image`, or the name of a built-in model.
        codec: VQGAN checkpoint, or a folder of `unival codec train`; by default `codec/` in the model's folder.
        samples: Drawings per caption, of which one is returned: that with the most probable codes, as the original does
            without CLIP; it tends to be the plainest one.
        topk: Codes are drawn from so many of the most probable ones.
        temperature: Divides the logits.
        seed: Caption i is drawn with `seed + i`.
        judge: A model that describes pictures; the drawing to which it gives the caption most probably is returned.
        device: Where to compute; `auto` is a GPU when there is one.

    Returns:
        Pictures, uint8 (H, W, 3).

    Raises:
        UserError: If a model or the codec are missing, do not fit, or a caption is empty.
    """
    empty = next((index for index, caption in enumerate(captions) if not caption.strip()), None)
    if empty is not None:
        raise UserError(f"caption {empty} is empty", fix="say what to draw")
    place = find_device(device)
    network = load_codec(codec or codec_of(model), place)
    loaded, processor = load_model(model, place)
    reader = None if judge is None else load_model(judge, place)
    if reader is not None and reader[0].config.image_encoder is None:
        fix = "give a model that describes pictures, for example unival-tiny"
        raise UserError("the judge cannot read pictures: it has no image encoder", where=str(judge), fix=fix)
    task = get_task("text_to_image", {})
    options = {"sampling": True, "sampling_topk": topk, "temperature": temperature}
    pictures = []
    for index, caption in enumerate(track(captions, "draw", len(captions))):
        record = {"uid": str(index), "caption": caption}
        inputs = processor.collate([task.example(record)]).inputs
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + index)
            (texts,) = hypotheses(loaded, processor, task, inputs, samples, options)
        codes = [task.parse(text, record) for text in (texts if reader else texts[:1])]
        drawn = [to_picture(network.decode(to_grid(each, network.num_codes))[0]) for each in codes]
        best = int(caption_scores(*reader, drawn, caption).argmax()) if reader else 0
        pictures.append(drawn[best])
    return pictures


@torch.no_grad()
def caption_scores(
    model: UnivalForConditionalGeneration, processor: UnivalProcessor, pictures: Sequence[np.ndarray], caption: str
) -> torch.Tensor:
    """Return the log-probabilities (pictures,) that a model which describes pictures gives to a caption of each."""
    task = get_task("caption", {})
    examples = [task.example({"uid": str(i), "image": picture}) for i, picture in enumerate(pictures)]
    inputs = {name: tensor.to(model.device) for name, tensor in processor.collate(examples).inputs.items()}
    ids = torch.tensor(processor.encode([caption]), device=model.device).expand(len(pictures), -1)
    log_probs = model(**inputs, decoder_input_ids=ids[:, :-1]).logits.log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None]).sum((1, 2))


def codec_of(model: str | Path) -> Path:
    """Return the codec in a model's folder.

    Raises:
        UserError: If there is no such model, or it has none.
    """
    folder = resolve_model_dir(model) / CODEC_FOLDER
    if not folder.is_dir():
        fix = "give the codec that it was trained with (--codec)"
        raise UserError(f"the model has no codec: no folder {CODEC_FOLDER!r}", where=str(model), fix=fix)
    return folder
