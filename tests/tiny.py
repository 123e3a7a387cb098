"""A model, a processor and inputs small enough for every test: generated, seeded, offline.

The weights are random but large, as a model with BERT's initial weights (0.02, tied embeddings) repeats its input
whatever it is shown: outputs here depend on the medium, the prompt and the prefix.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unival.batch import Batch, Example, Modality
from unival.model.configuration import UnivalConfig
from unival.model.modeling import MEDIA_INPUTS, UnivalForConditionalGeneration
from unival.model.processing import UnivalProcessor
from unival.model.tokenizer import train_tokenizer

NUM_CODES, NUM_BINS = 16, 10
MODALITIES: tuple[Modality, ...] = ("image", "video", "audio", "text")
TEXTS = (
    "what does the image describe?",
    "what does the video describe?",
    "what does the audio describe?",
    'which region does the text " the red apple " describe?',
    "what does the region describe? region:",
    'does the image describe " a dog left of a cat "?',
    "what is left of the cat?",
    "a red apple above a cat",
    "a dog left of a blue cup",
    "yes no maybe red blue dog cat apple cup",
)
SIZES: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_text_positions": 64,
    "text_bucket_size": 8,
    "image_bucket_size": 6,
    "code_image_size": 32,
}
# Eight channels at least: the backward pass of torch 2.11 (oneDNN) on CPUs corrupts memory for 1x1 convolutions of
# stride 2 in channels-last layout with 2 to 7 input channels.
IMAGE_ENCODER = {"name": "resnet18", "out_index": 2, "channels": [8, 8], "layers": [1, 1], "stem_width": 8}
VIDEO_ENCODER = {"depths": [1, 1], "planes": [4, 4], "groups": 2, "stem_width": 4, "stem_kernel": [3, 3, 3]}
AUDIO_ENCODER = {"channels": [2, 4, 4], "sample_rate": 4000, "n_fft": 128, "hop": 100, "mel_bins": 8, "fmax": 2000.0}
AUDIO_ENCODER |= {"time_stripe": 2, "mel_stripe": 1}
ENCODERS = {"image_encoder": IMAGE_ENCODER, "video_encoder": VIDEO_ENCODER, "audio_encoder": AUDIO_ENCODER}
PROCESSOR = {"image_px": 24, "video_px": 24, "num_frames": 4, "sample_rate": 4000, "audio_seconds": 0.5}


@functools.cache
def processor() -> UnivalProcessor:
    """Return the processor with its tokenizer, shared: do not change it."""
    tokenizer = train_tokenizer(TEXTS, num_words=320, num_codes=NUM_CODES, num_bins=NUM_BINS)
    return UnivalProcessor(tokenizer, num_bins=NUM_BINS, **PROCESSOR)


def build_model(seed: int = 0, **changes: Any) -> UnivalForConditionalGeneration:
    """Return a new model in evaluation mode; `changes` replace fields of its configuration."""
    sizes = {"vocab_size": len(processor().tokenizer), "num_codes": NUM_CODES, "num_bins": NUM_BINS}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UnivalForConditionalGeneration(UnivalConfig(**(sizes | SIZES | ENCODERS | changes)))
        randomise(model)
    return model.eval()


@functools.cache
def model() -> UnivalForConditionalGeneration:
    """Return the model with all encoders, shared: do not change it."""
    return build_model()


@functools.cache
def exact_model() -> UnivalForConditionalGeneration:
    """Return `model` in double precision, shared: laws hold to 1e-9 in it, whatever the order of sums."""
    exact = build_model().double()
    spectrogram = exact.encoder.embed_audios.spectrogram  # float32 by design
    exact.encoder.embed_audios.spectrogram = lambda waveform: spectrogram(waveform).double()
    return exact


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Fill every parameter and running statistic so that no part of the computation is trivial."""
    for name, parameter in network.named_parameters():
        if name.endswith("melW"):
            continue
        if "rel_pos_table" in name:
            parameter.normal_(0.0, 0.5)
        elif name.endswith("embed_tokens.weight"):
            parameter.normal_(0.0, 2.0 * parameter.shape[1] ** -0.5)
        elif parameter.ndim > 1:
            gain = 2.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.5  # attention with peaks
            parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5)
        elif name.endswith("layernorm_embedding.weight"):
            parameter.normal_(0.3, 0.03)  # small, or the decoder repeats its last token
        else:
            parameter.normal_(float(name.endswith(("weight", "c_attn"))), 0.1)
    for name, statistic in network.named_buffers():
        if name.endswith("running_mean"):
            statistic.normal_(0.0, 0.05)
        elif name.endswith("running_var"):
            statistic.uniform_(0.9, 1.1)


def media(modality: Modality, num: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return the media argument of the model: `num` random media, or nothing for text."""
    shapes = {"image": (3, 24, 24), "video": (3, 4, 24, 24), "audio": (2000,)}
    if modality == "text":
        return {}
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(num, *shapes[modality], generator=generator) * 2.0 - 1.0
    return {MEDIA_INPUTS[modality]: values.to(dtype)}


def prompt_ids(texts: Sequence[str]) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask` of some prompts."""
    inputs = processor().collate([Example(str(i), text) for i, text in enumerate(texts)]).inputs
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def picture(seed: int = 0, side: int = 24) -> np.ndarray:
    """Return a random uint8 picture (side, side, 3) of four flat quarters."""
    quarters = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return quarters.repeat(side // 2, 0).repeat(side // 2, 1)


def image_batch(
    prompts: Sequence[str], targets: Sequence[str], task_names: Sequence[str] = (), shared: bool = False
) -> Batch:
    """Return a batch about pictures: one each, or one for all."""
    examples = [
        Example(
            uid=str(i),
            prompt=prompt,
            target=target,
            modality="image",
            media=picture(0 if shared else i),
            media_id="0" if shared else str(i),
            record={"uid": str(i), "captions": [target]},
        )
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True))
    ]
    return processor().collate(examples, task_names)


def run_settings(out: Path, steps: Sequence[int] = (4, 3), **changes: Any) -> dict[str, Any]:
    """Return the fields of a `RunConfig` of two stages; the second adds video."""
    limit = {"world": "train", "limit": 24}
    image = {"rows": 2, "tasks": [{"task": "caption", "source": limit}, {"task": "vqa", "source": limit}]}
    video = {"rows": 2, "tasks": [{"task": "caption", "task_args": {"modality": "video"}, "source": limit}]}
    optim = {"lr": 1e-2, "warmup_ratio": 0.0}
    settings = {
        "out": str(out),
        "model": SIZES | {"image_encoder": IMAGE_ENCODER, "dropout": 0.1, "max_text_positions": 160},
        "processor": PROCESSOR,
        "tokenizer": {"num_words": 300, "num_codes": NUM_CODES, "num_bins": NUM_BINS},
        "stages": [
            {"name": "image", "steps": steps[0], "groups": [image], "optim": optim},
            {
                "name": "image-video",
                "steps": steps[1],
                "groups": [image, video],
                "optim": optim,
                "add": {"video_encoder": VIDEO_ENCODER},
            },
        ],
        "threads": 1,
        "workers": 0,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return settings | changes
