"""A 3x3 convolution that multiplies a third as often where multiplying takes the time."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unival.model.linear import is_watched

# Winograd's algorithm F(3x3, 3x3) by the points 0, 1, -1, 2 and infinity (Lavin and Gray, arXiv 1509.09308): along one
# axis the three outputs of a tile are OUT ((TAPS w) * (IN x)), w the kernel and x the five inputs that they depend on;
# for both axes at once each matrix is its Kronecker product with itself.
TILE, PATCH = 3, 5
_OUT = ((1, 1, 1, 1, 0), (0, 1, -1, 2, 0), (0, 1, 1, 4, 1))
_TAPS = ((1 / 2, 0, 0), (-1 / 2, -1 / 2, -1 / 2), (-1 / 6, 1 / 6, -1 / 6), (1 / 6, 1 / 3, 2 / 3), (0, 0, 1))
_IN = ((2, -1, -2, 1, 0), (0, -2, -1, 1, 0), (0, 2, -3, 1, 0), (0, -1, 0, 1, 0), (0, 2, -1, -2, 1))
# With fewer channels moving the patches costs more than it saves, with fewer tiles transforming the kernel does.
MIN_CHANNELS, MIN_TILES = 256, 100
PART_BYTES = 32 * 2**20  # of transformed patches; see `unival.model.image.PART_BYTES`


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, in float32 prediction on a CPU computed by `winograd` where the kernel is 3x3 and large.

    Measured on two cores with AVX2: 256 channels of four pictures of 30x30 take 16 to 20 ms instead of 26; the whole
    ResNet-101 4 to 15 % less, the more the faster the memory (`benchmarks/convolution.py`).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, C, H, W)."""
        return winograd(input, self.weight) if self._gains(input) else super().forward(input)

    def _gains(self, x: Tensor) -> bool:
        if is_watched() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if x.ndim != 4 or x.shape[1] != self.in_channels or not x.dtype == self.weight.dtype == torch.float32:
            return False  # what does not fit, torch explains better
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.padding_mode, self.groups)
        if geometry != ((3, 3), (1, 1), (1, 1), (1, 1), "zeros", 1) or self.bias is not None:
            return False
        return min(self.weight.shape[:2]) >= MIN_CHANNELS and len(x) * _tiles(x) >= MIN_TILES


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve with a 3x3 kernel, stride 1 and padding 1, by 25 products per tile and pair of channels instead of 81.

    The rounding error is about twice that of the plain sum. The kernel is transformed at every call, which takes a
    tenth of the time: a copy would have to follow every change of the weights.

    Args:
        x: Inputs (B, C, H, W), float32; fastest in channels-last layout.
        weight: Kernels (D, C, 3, 3), float32.

    Returns:
        (B, D, H, W) in the layout of `x`.
    """
    kernel = (_TAPS2 @ weight.reshape(-1, 9).t()).view(PATCH**2, *weight.shape[:2]).transpose(1, 2)
    rows = max(PART_BYTES // (PATCH**2 * _tiles(x) * max(weight.shape[:2]) * x.element_size()), 1)
    if len(x) <= rows:
        return _winograd(x, kernel)
    return torch.cat([_winograd(part, kernel) for part in x.split(rows)])


def _winograd(x: Tensor, kernel: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, across * TILE + 1 - width, 1, down * TILE + 1 - height))
    patches = padded.unfold(1, PATCH, TILE).unfold(2, PATCH, TILE).permute(4, 5, 0, 1, 2, 3)
    products = (_IN2 @ patches.reshape(PATCH**2, -1)).view(PATCH**2, -1, channels) @ kernel
    tiles = (_OUT2 @ products.view(PATCH**2, -1)).view(TILE, TILE, batch, down, across, -1)
    outputs = tiles.permute(2, 3, 0, 4, 1, 5).reshape(batch, down * TILE, across * TILE, -1)
    outputs = outputs[:, :height, :width].permute(0, 3, 1, 2)
    # In the layout of the input: the next convolution would turn its weights over to fit another.
    is_last = x.is_contiguous(memory_format=torch.channels_last)
    return outputs.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _tiles(x: Tensor) -> int:
    return -(-x.shape[-2] // TILE) * -(-x.shape[-1] // TILE)


def _for_both_axes(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    along = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    return torch.kron(along, along).to(torch.float32)


_OUT2, _TAPS2, _IN2 = (_for_both_axes(matrix) for matrix in (_OUT, _TAPS, _IN))


def convolve_faster(module: nn.Module) -> None:
    """Let every two-dimensional convolution inside `module` be a `Conv2d` of here; names and values stay."""
    for child in module.modules():
        if type(child) is nn.Conv2d:
            child.__class__ = Conv2d
