"""VQGAN: pictures as codes of a learned table; loads checkpoints of taming-transformers (VQ f8/f16, Gumbel f8).

Their sizes are read off the tensors, so no configuration file is needed. Shapes as in `unival.codec.layers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival.codec.layers import Decoder, Encoder, nearest
from unival.errors import UserError

COMMITMENT = 0.25


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Sizes of a codec; the defaults are those of taming's Gumbel f8 with 8,192 codes, which the original uses.

    Attributes:
        channels: Of the first level.
        multipliers: Channels of each level, in units of `channels`; n levels make a code of 2**(n - 1) pixels.
        res_blocks: Residual blocks of each level of the encoder.
        attention: Levels with attention.
        z_channels, embed_dim: Channels before and in the table of codes.
        num_codes: Rows of the table.
        is_gumbel: Codes are the largest of `num_codes` scores, not the nearest rows.
        groups: Of every group norm.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 4)
    res_blocks: int = 2
    attention: tuple[int, ...] = (3,)
    z_channels: int = 256
    embed_dim: int = 256
    num_codes: int = 8192
    is_gumbel: bool = True
    groups: int = 32


class GumbelQuantizer(nn.Module):
    """A score for every code; the straight-through noise of its training has no part in using it."""

    def __init__(self, width: int, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, num_codes, 1)
        self.embed = nn.Embedding(num_codes, embed_dim)

    @property
    def table(self) -> Tensor:
        """The vectors of the codes (num_codes, embed_dim)."""
        return self.embed.weight

    def forward(self, features: Tensor) -> Tensor:
        """Return codes (B, h, w) of features (B, C, h, w)."""
        return self.proj(features).argmax(1)


class NearestQuantizer(nn.Module):
    """The nearest vector of a table."""

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)

    @property
    def table(self) -> Tensor:
        """The vectors of the codes (num_codes, embed_dim)."""
        return self.embedding.weight

    def forward(self, features: Tensor) -> Tensor:
        """Return codes (B, h, w) of features (B, C, h, w)."""
        return nearest(features, self.table)


class VQGAN(nn.Module):
    """An `ImageCodec`. There is no discriminator: `forward` is enough to train a small one."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.patch, self.num_codes = 2 ** (len(config.multipliers) - 1), config.num_codes
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        rest = (config.res_blocks, config.attention, config.z_channels, config.groups)
        self.encoder = Encoder(widths, config.channels, *rest)
        self.decoder = Decoder(widths, *rest)
        self.quantize = (
            GumbelQuantizer(config.embed_dim, config.num_codes, config.embed_dim)
            if config.is_gumbel
            else NearestQuantizer(config.num_codes, config.embed_dim)
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes (B, h, w) int64 of pixels (B, 3, H, W) in [-1, 1].

        Raises:
            UserError: If the sides are no multiples of `patch`.
        """
        if pixels.shape[2] % self.patch or pixels.shape[3] % self.patch:
            what = f"a picture of {pixels.shape[3]}x{pixels.shape[2]} cannot be cut into squares of {self.patch}"
            raise UserError(what, fix="resize it")
        return self.quantize(self.features(pixels.to(self.quantize.table.device)))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1] of codes (B, h, w)."""
        table = self.quantize.table
        vectors = F.embedding(codes.to(table.device), table).movedim(-1, 1)
        return self.restore(vectors).clamp(-1.0, 1.0)

    def features(self, pixels: Tensor) -> Tensor:
        """Return what is quantised (B, embed_dim, h, w)."""
        return self.quant_conv(self.encoder(pixels))

    def choose(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the vectors (B, embed_dim, h, w) of the codes of features, the loss of the table, the codes (B, h, w).

        The gradient passes straight through the choice (van den Oord et al. 2017, arXiv:1711.00937).
        """
        codes = self.quantize(features)
        vectors = F.embedding(codes, self.quantize.table).movedim(-1, 1)
        table_loss = F.mse_loss(vectors, features.detach()) + COMMITMENT * F.mse_loss(features, vectors.detach())
        return features + (vectors - features).detach(), table_loss, codes

    def restore(self, vectors: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W), not yet cut at -1 and 1, of vectors (B, embed_dim, h, w)."""
        return self.decoder(self.post_quant_conv(vectors))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction (B, 3, H, W), the loss of the table and its codes (B, h, w), with gradients."""
        vectors, table_loss, codes = self.choose(self.features(pixels))
        return self.restore(vectors), table_loss, codes


def inferred_config(state: Mapping[str, Tensor], where: str) -> CodecConfig:
    """Return the sizes of a checkpoint of taming-transformers, read off its tensors.

    Raises:
        UserError: If its tensors are not those of a VQGAN.
    """
    is_gumbel = "quantize.proj.weight" in state
    try:
        channels = len(state["encoder.conv_in.weight"])
        num_levels = num_numbered(state, "encoder.down.{}.block.0.conv1.weight")
        widths = [len(state[f"encoder.down.{level}.block.0.conv1.weight"]) for level in range(num_levels)]
        attention = [level for level in range(num_levels) if f"encoder.down.{level}.attn.0.norm.weight" in state]
        table = state["quantize.embed.weight" if is_gumbel else "quantize.embedding.weight"]
        return CodecConfig(
            channels=channels,
            multipliers=tuple(width // channels for width in widths),
            res_blocks=num_numbered(state, "encoder.down.0.block.{}.conv1.weight"),
            attention=tuple(attention),
            z_channels=len(state["encoder.conv_out.weight"]),
            embed_dim=table.shape[1],
            num_codes=table.shape[0],
            is_gumbel=is_gumbel,
        )
    except KeyError as error:
        what = f"no VQGAN: {error.args[0]} is missing"
        raise UserError(what, where, "give a checkpoint of taming-transformers") from None


def num_numbered(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many names there are of a pattern with a number from 0 on."""
    number = 0
    while pattern.format(number) in state:
        number += 1
    return number


def build_codec(config: CodecConfig, state: Mapping[str, Tensor], where: str) -> VQGAN:
    """Return a codec in evaluation mode with the weights of a checkpoint, in float32.

    Raises:
        UserError: If they do not fit.
    """
    try:
        with torch.device("meta"):
            codec = VQGAN(config)
        own = codec.state_dict()
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"no VQGAN has these sizes: {error}", where=where, fix="copy the codec again") from None
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    wrong += [name for name in state if name not in own]
    if wrong:
        listed = ", ".join(wrong[:5])
        what = f"{len(wrong)} tensors are missing, unknown or of another shape: {listed}"
        raise UserError(what, where=where, fix="codec.json describes another codec than the weights: copy both again")
    codec.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return codec.eval().requires_grad_(False)
