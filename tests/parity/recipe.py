"""Weights and inputs of the recorded cases, made from their names: what `recipe.py` beside the recordings makes.

Uniform numbers of a CPU generator are the same on every platform, and only exactly rounded operations follow.
`test_golden_tiny.py` checks this file against the sums that were recorded with the cases.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight")
POSITIONS = re.compile(r"(embed_(image_|video_|audio_)?positions|type_embedding)\.weight$")


def rand(name: str, shape: Sequence[int]) -> Tensor:
    """Uniform in [0, 1), float32, seeded with the CRC-32 of the name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32)


def weight_for(key: str, shape: Sequence[int], seed: int, folder: Path) -> Tensor:
    """Value of one floating-point entry of a state dict; `folder` holds the mel filter bank."""
    if "stft.conv_" in key:
        return stft_weight(shape[2], "imag" in key)
    if key.endswith("melW"):
        return load_file(folder / "mel_filter.safetensors")["melW"]
    u = (rand(f"{seed}:{TIED[0] if key in TIED else key}", shape) - 0.5) * 3.4641016151377544
    if key in TIED:
        u = u * (2.0 * shape[1] ** -0.5)
        u[1] = 0.0
        u[2] *= 2.0 if shape[0] < 10000 else 3.0
        return u
    if "running" in key or len(shape) == 1:
        return vector(key, u)
    if "rel_pos_table_list" in key:
        return u * 0.5
    if POSITIONS.search(key):
        return u * shape[1] ** -0.5
    if len(shape) >= 4:
        return u * math.sqrt(2.0 / math.prod(shape[1:]))
    return u * ((2.5 if key.endswith(("q_proj.weight", "k_proj.weight")) else 1.0) * shape[-1] ** -0.5)


def vector(key: str, u: Tensor) -> Tensor:
    """Value of a norm's parameter or statistic, of a bias, or of the scales of attention heads."""
    rules = {
        "embed_audios.bn0.running_mean": (5.0, -20.0),
        "embed_audios.bn0.running_var": (40.0, 400.0),
        ".running_mean": (0.05, 0.0),
        ".running_var": (0.1, 1.0),
        "bn3.weight": (0.025, 0.25),
        "layernorm_embedding.weight": (0.03, 0.3),
        ".weight": (0.1, 1.0),
        ".c_attn": (0.1, 1.0),
        "": (0.05, 0.0),
    }
    factor, offset = next(rule for ending, rule in rules.items() if key.endswith(ending))
    return u * factor + offset


def stft_weight(size: int, is_imaginary: bool) -> Tensor:
    """Windowed Fourier basis (size / 2 + 1, 1, size)."""
    sample = torch.arange(size, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2.0 * math.pi * sample / size)
    phase = torch.arange(size // 2 + 1)[:, None] * torch.arange(size)[None, :] % size
    angle = phase.double() * (2.0 * math.pi / size)
    wave = -torch.sin(angle) if is_imaginary else torch.cos(angle)
    return (wave * window).float()[:, None]


@torch.no_grad()
def fill(state: Mapping[str, Tensor], seed: int, folder: Path) -> None:
    """Overwrite every floating-point tensor of a state dict in place."""
    is_tied_done = False
    for key in sorted(state):
        tensor = state[key]
        if not torch.is_floating_point(tensor) or (key in TIED and is_tied_done):
            continue
        is_tied_done |= key in TIED
        tensor.copy_(weight_for(key, tensor.shape, seed, folder))


def build_input(description: Mapping[str, Any]) -> Tensor:
    """Make the media that an input description stands for."""
    kind, shape, name = description["kind"], description["shape"], description.get("name", "")
    if kind == "zeros":
        return torch.zeros(shape)
    return audio(name, shape) if kind == "audio" else pixels(name, shape)


def pixels(name: str, shape: Sequence[int]) -> Tensor:
    """A picture (B, 3, H, W) or clip (B, 3, F, H, W) in [-1, 1]: a mosaic, new every second frame, and noise."""
    blocks = [1, 1, *([2] if len(shape) == 5 else []), 32, 32]
    coarse = rand(f"{name}/coarse", [-(-size // block) for size, block in zip(shape, blocks, strict=True)])
    for axis, (size, block) in enumerate(zip(shape, blocks, strict=True)):
        coarse = coarse.repeat_interleave(block, axis).narrow(axis, 0, size)
    return (coarse * 0.75 + rand(f"{name}/noise", shape) * 0.25) * 2.0 - 1.0


def audio(name: str, shape: Sequence[int]) -> Tensor:
    """A waveform (B, samples) in about [-0.6, 0.6]: noise bursts of 4800 samples."""
    rows, samples = shape

    def steps(part: str, length: int) -> Tensor:
        return rand(f"{name}/{part}", (rows, -(-samples // length))).repeat_interleave(length, 1)[:, :samples]

    level = steps("level", 4800)
    return (steps("slow", 24) - 0.5) * level * 0.8 + (rand(f"{name}/fast", shape) - 0.5) * level * 0.4
