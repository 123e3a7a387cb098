"""The convolutional encoder and decoder of a VQGAN (Esser et al. 2021, arXiv:2012.09841).

Names of modules are those of taming-transformers, so that its checkpoints load name for name. Shapes: B pictures,
C channels, H x W pixels; level i of n works at 1 / 2**i of the side.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        normed = self.norm(x)
        query, key, value = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # B HW C
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halve the side; the padding is right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repeating pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention behind it or none, then a change of resolution or none."""

    def __init__(self, widths: Sequence[int], groups: int, has_attention: bool, resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(width, groups) for width in widths[1:] if has_attention)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the level's width and, if it resamples, to another side."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    """Two residual blocks with attention between them."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures to features.

    Args:
        widths: Channels of each level.
        width: Channels of the first convolution.
        res_blocks: Residual blocks of each level.
        attention: Levels that have attention.
        z_channels: Channels of the result.
        groups: Of every group norm.
    """

    def __init__(
        self, widths: Sequence[int], width: int, res_blocks: int, attention: Sequence[int], z_channels: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        levels, before = [], width
        for index, after in enumerate(widths):
            resample = Downsample(after) if index < len(widths) - 1 else None
            levels.append(Level([before, *[after] * res_blocks], groups, index in attention, resample))
            before = after
        self.down = nn.ModuleList(levels)
        self.mid = Middle(before, groups)
        self.norm_out = nn.GroupNorm(groups, before, EPS)
        self.conv_out = nn.Conv2d(before, z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to features (B, z_channels, h, w)."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features to pictures; arguments as of `Encoder`. Each level has a residual block more than there."""

    def __init__(
        self, widths: Sequence[int], res_blocks: int, attention: Sequence[int], z_channels: int, groups: int
    ) -> None:
        super().__init__()
        before = widths[-1]
        self.conv_in = nn.Conv2d(z_channels, before, 3, padding=1)
        self.mid = Middle(before, groups)
        levels: list[nn.Module] = []
        for index in reversed(range(len(widths))):
            after = widths[index]
            resample = Upsample(after) if index > 0 else None
            levels.append(Level([before, *[after] * (res_blocks + 1)], groups, index in attention, resample))
            before = after
        self.up = nn.ModuleList(levels[::-1])
        self.norm_out = nn.GroupNorm(groups, before, EPS)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, z_channels, h, w) to pixels (B, 3, H, W)."""
        x = self.mid(self.conv_in(features))
        for index in reversed(range(len(self.up))):
            x = self.up[index](x)
        return self.conv_out(F.silu(self.norm_out(x)))


def nearest(features: Tensor, table: Tensor) -> Tensor:
    """Return the number (B, h, w) of the row of `table` (N, C) that is closest to each feature (B, C, h, w)."""
    flat = features.movedim(1, -1).flatten(0, -2)
    distance = table.square().sum(1) - 2.0 * flat @ table.T  # the squared norm of the feature is the same for all
    return torch.argmin(distance, dim=1).view(features.shape[0], *features.shape[2:])
