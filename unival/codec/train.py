"""Train a small codec on the embedded world: pictures of 64 pixels as 8 x 8 codes out of 64, like unival-tiny's.

    unival codec train codecs/mine --steps 2000

A mean absolute error in pixels, the straight-through loss of the table, and new vectors for codes that nothing uses.
There is no discriminator and no perceptual loss: the pictures are flat drawings, and the codec must stay small.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from unival.atomic import replacing, write_json
from unival.codec.base import to_pixels
from unival.codec.vqgan import VQGAN, CodecConfig
from unival.data.scenes import ImageScenes
from unival.log import track

SMALL = CodecConfig(
    channels=4,
    multipliers=(1, 2, 4, 4),
    res_blocks=1,
    attention=(3,),
    z_channels=16,
    embed_dim=8,
    num_codes=64,
    is_gumbel=False,
    groups=2,
)
SIDE = 64
RESTART_EVERY = 50


def train_codec(
    out: str | Path,
    steps: int = 2000,
    batch_size: int = 16,
    num_pictures: int = 2000,
    lr: float = 3e-3,
    seed: int = 1,
    config: CodecConfig = SMALL,
    num_test: int = 500,
) -> dict[str, Any]:
    """Train a codec on pictures of the training split, write it and return its error on the test split.

    Args:
        out: Folder for `codec.json`, `model.safetensors` (float16) and `evaluation.json`.
        steps, batch_size, num_pictures, lr, seed: Of the training; the rate falls to zero along a cosine.
        config: Sizes.
        num_test: Pictures of the test split.
    """
    torch.manual_seed(seed)
    pictures = world_pictures("train", num_pictures)
    codec = VQGAN(config)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    uses = torch.zeros(config.num_codes)
    for step in track(range(steps), "train codec", steps):
        batch = pictures[torch.randint(len(pictures), (batch_size,))]
        restored, table_loss, codes = codec(batch)
        (F.l1_loss(restored, batch) + table_loss).backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 50) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        uses += torch.bincount(codes.flatten(), minlength=config.num_codes)
        if (step + 1) % RESTART_EVERY == 0:
            if step < 0.8 * steps:
                restart_unused(codec, batch, uses)
            uses.zero_()
    codec.half().float()  # what is written
    report = {"steps": steps, "seed": seed, **measure(codec.eval(), world_pictures("test", num_test))}
    save_codec(codec, out)
    write_json(Path(out) / "evaluation.json", report, indent=1)
    return report


def world_pictures(split: str, number: int, **options: Any) -> Tensor:
    """Return pictures of the embedded world as float32 (number, 3, SIDE, SIDE) in [-1, 1]."""
    scenes = ImageScenes(split, **options)
    return torch.stack([to_pixels(scenes[index].image, SIDE) for index in range(number)])


@torch.no_grad()
def restart_unused(codec: VQGAN, pixels: Tensor, uses: Tensor) -> None:
    """Move vectors that no picture was encoded with to places where features are."""
    features = codec.features(pixels).movedim(1, -1).flatten(0, 2)
    unused = (uses == 0).nonzero()[:, 0]
    drawn = features[torch.randint(len(features), (len(unused),))]
    codec.quantize.table[unused] = drawn + 0.01 * torch.randn_like(drawn)


def measure(codec: VQGAN, pixels: Tensor) -> dict[str, float]:
    """Return errors of reconstructions, in levels of 0 to 255, beside those of a picture's mean colour.

    Returns:
        `mean_absolute_error`, `psnr_db`, `mean_colour_error` (the error of one flat colour per picture), `codes_used`
        and `perplexity` of the codes.
    """
    codes = torch.cat([codec.encode(part) for part in pixels.split(50)])
    restored = torch.cat([codec.decode(part) for part in codes.split(50)])
    error = (restored - pixels).abs() * 127.5
    flat = (pixels.mean((2, 3), keepdim=True) - pixels).abs() * 127.5
    share = torch.bincount(codes.flatten(), minlength=codec.num_codes) / codes.numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    return {
        "pictures": len(pixels),
        "mean_absolute_error": round(error.mean().item(), 3),
        "mean_colour_error": round(flat.mean().item(), 3),
        "psnr_db": round(float(10 * np.log10(255**2 / error.square().mean().item())), 2),
        "codes_used": int((share > 0).sum()),
        "perplexity": round(entropy.exp().item(), 1),
    }


def save_codec(codec: VQGAN, out: str | Path) -> None:
    """Write `model.safetensors` (float16) and `codec.json` into a folder."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in codec.state_dict().items()}
    with replacing(Path(out) / "model.safetensors", "wb") as file:
        file.write(save(state, {"format": "pt"}))
    with replacing(Path(out) / "codec.json") as file:
        file.write(json.dumps(asdict(codec.config), indent=1) + "\n")
