"""Train a small codec on the embedded world: pictures of 64 pixels as 16 x 16 (or 8 x 8) codes out of 512.

    unival codec train codecs/mine

The network first learns pictures without a table. The table then starts from what the encoder writes, follows it as a
running mean, and vectors that are hardly used move to where the table is worst. There is no discriminator and no
perceptual loss: the pictures are flat drawings, and the codec must stay small.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from unival.atomic import replacing, write_json
from unival.codec.base import to_pixels
from unival.codec.running_table import RunningTable
from unival.codec.vqgan import VQGAN, CodecConfig
from unival.data.scenes import ImageScenes
from unival.device import find_device
from unival.log import track

SMALL = CodecConfig(
    channels=8,
    multipliers=(1, 2, 4),
    res_blocks=1,
    attention=(),
    z_channels=32,
    embed_dim=8,
    num_codes=512,
    is_gumbel=False,
    # A group norm takes the mean and the contrast of its channels out of a picture. The last one of the decoder stands
    # right before the pixels, so many small groups leave little that tells one background from another.
    groups=1,
)
SIZES = {4: SMALL, 8: replace(SMALL, multipliers=(1, 2, 4, 4))}  # by pixels along the side of a code
SIDE = 64
CONTINUOUS = 0.2  # of the steps have no table
SETTLED = 0.8  # of the steps are over when vectors stop being moved


def train_codec(
    out: str | Path,
    steps: int = 1000,
    batch_size: int = 8,
    num_pictures: int = 2000,
    lr: float = 3e-3,
    seed: int = 1,
    config: CodecConfig = SMALL,
    num_test: int = 500,
    device: str = "auto",
) -> dict[str, Any]:
    """Train a codec on pictures of the training split, write it and return its error on the test split.

    Args:
        out: Folder for `codec.json`, `model.safetensors` (float16) and `evaluation.json`.
        steps, batch_size, num_pictures, lr, seed: Of the training; the rate falls to zero along a cosine.
        config: Sizes.
        num_test: Pictures of the test split.
        device: Where to compute; `auto` is a GPU when there is one.
    """
    Path(out).mkdir(parents=True, exist_ok=True)  # a wrong one is better found before the training
    torch.manual_seed(seed)
    place = find_device(device)
    codec = initialised(VQGAN(config)).to(place)
    fit(codec, world_pictures("train", num_pictures).to(place), steps, batch_size, lr)
    codec.half().float()  # what is written
    report = {"steps": steps, "seed": seed, **measure(codec.eval(), world_pictures("test", num_test).to(place))}
    save_codec(codec, out)
    write_json(Path(out) / "evaluation.json", report, indent=1)
    return report


@torch.no_grad()
def initialised(codec: VQGAN) -> VQGAN:
    """Start a codec so that colours pass through it, and return it.

    PyTorch's convolutions shrink their input to 0.58 and add biases as large. The mean colours of the embedded world's
    pictures deviate by 0.20 from each other; behind an encoder and a decoder drawn so, by 0.007, and a few minutes
    teach shapes in one colour. So: rows of length 1 at right angles (Saxe et al. 2014, arXiv:1312.6120), no biases,
    residual branches that begin at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1). It is then 0.08 to 0.25.
    """
    for name, module in codec.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(module.weight)
            else:
                nn.init.orthogonal_(module.weight)
    return codec


def fit(codec: VQGAN, pictures: Tensor, steps: int, batch_size: int, lr: float) -> VQGAN:
    """Train a codec on pictures (N, 3, H, W) in [-1, 1] and return it."""
    codec.quantize.table.requires_grad_(False)  # a running mean, no parameter of the optimiser
    weights = [parameter for parameter in codec.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    axes, table = colour_axes(pictures), None
    for step in track(range(steps), "train codec", steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        batch = pictures[torch.randint(len(pictures), (batch_size,))]
        features = codec.features(batch)
        if step < CONTINUOUS * steps:
            loss = picture_loss(codec.restore(features), batch, axes)
        else:
            table = table or RunningTable(codec.quantize.table, features)
            vectors, table_loss, codes = codec.choose(features)
            loss = picture_loss(codec.restore(vectors), batch, axes) + table_loss
            table.follow(features.detach(), codes, may_move=step < SETTLED * steps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return codec


def colour_axes(pictures: Tensor) -> Tensor:
    """Return the principal axes of the colours of pictures as rows (3, 3), each divided by its deviation.

    They are close to brightness, blue to orange and green to purple; the mean variance stays.
    """
    variances, vectors = torch.linalg.eigh(pictures.movedim(1, -1).flatten(0, -2).T.cov())
    return (vectors * (variances.mean() / variances.clamp(min=1e-4)).sqrt()).T


def picture_loss(restored: Tensor, pictures: Tensor, axes: Tensor) -> Tensor:
    """Return the mean squared error of pixels and, so that rare hues count, that of colours along their own axes.

    Green to purple deviates by a third of brightness. Of absolute errors, whose best guess for what most pictures lack
    is none, the encoder does not learn it in minutes.
    """
    error = restored - pictures
    return error.square().mean() + torch.einsum("ac,bchw->bahw", axes, error).square().mean()


def world_pictures(split: str, number: int, **options: Any) -> Tensor:
    """Return pictures of the embedded world as float32 (number, 3, SIDE, SIDE) in [-1, 1]."""
    scenes = ImageScenes(split, **options)
    return torch.stack([to_pixels(scenes[index].image, SIDE) for index in range(number)])


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
