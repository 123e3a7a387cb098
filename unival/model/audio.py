"""Audio encoder: PANN-style CNN on a log-mel spectrogram (Kong et al. 2020; specification 2.8)."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks
from transformers import initialization as init
from transformers.modeling_utils import local_torch_dtype

from unival.model.convolution import Conv2d
from unival.model.norm import normalise_in_place


class Table(nn.Module):
    """Base of modules with a fixed table, which stays in float32 when the model around it is cast to 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move with the model, not to 16 bits: rounded tables change levels by decibels where it is quiet."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(move, recurse)


class FourierBasis(Table):
    """One half of a windowed Fourier basis, (n_fft / 2 + 1, 1, n_fft), never trained."""

    def __init__(self, n_fft: int, is_imaginary: bool) -> None:
        super().__init__()
        self.is_imaginary = is_imaginary
        self.weight = nn.Parameter(torch.empty(n_fft // 2 + 1, 1, n_fft, dtype=torch.float32), False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Compute a periodic Hann window times cos or -sin, in float64 before rounding."""
        size = self.weight.shape[-1]
        with torch.device("cpu"):
            phase = torch.outer(torch.arange(size // 2 + 1), torch.arange(size)) % size  # exact in integers
            angle = phase.double() * (2.0 * torch.pi / size)
            wave = -torch.sin(angle) if self.is_imaginary else torch.cos(angle)
            init.copy_(self.weight, (wave * torch.hann_window(size, dtype=torch.float64))[:, None])


class StoredFourier(nn.Module):
    """The windowed Fourier basis that released files carry.

    Names make up the original's `spectrogram_extractor.stft.conv_{real,imag}.weight`. They are what the original
    computes with, so they are used and written back as they are; new models leave them out. The weights sit directly in
    the modules that fill them: `transformers` asks no module for initial weights that holds none itself.
    """

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.stft = nn.ModuleDict({"conv_real": FourierBasis(n_fft, False), "conv_imag": FourierBasis(n_fft, True)})

    def forward(self, waveform: Tensor, hop: int) -> Tensor:
        """Return the power (B, T, n_fft / 2 + 1) of `waveform` (B, samples), reflected at both ends."""
        real, imag = (cast(Tensor, basis.weight).squeeze(1).float() for basis in self.stft.values())
        size = real.shape[-1]
        frames = F.pad(waveform, (size // 2, size // 2), mode="reflect").unfold(-1, size, hop)
        return (frames @ real.T).square() + (frames @ imag.T).square()


class LogMel(Table):
    """Power spectrogram to log-mel in decibels. The filter bank is stored, because released models carry their own."""

    def __init__(self, sample_rate: int, n_fft: int, mel_bins: int, fmin: float, fmax: float) -> None:
        super().__init__()
        self.arguments = (n_fft // 2 + 1, fmin, fmax, mel_bins, sample_rate)
        self.melW = nn.Parameter(torch.empty(n_fft // 2 + 1, mel_bins, dtype=torch.float32), False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the filter bank of the arguments."""
        init.copy_(self.melW, self.filter_bank())

    def filter_bank(self) -> Tensor:
        """Compute the (n_fft / 2 + 1, mel_bins) filter bank, Slaney scale and norm."""
        with torch.device("cpu"), local_torch_dtype(torch.float32):
            return melscale_fbanks(*self.arguments, norm="slaney", mel_scale="slaney")

    def forward(self, power: Tensor) -> Tensor:
        """Map a power spectrogram (B, T, n_fft / 2 + 1) to (B, T, mel_bins) in dB, floor -100.

        In float32 at least: the floor of 1e-10 is zero in float16, and silence would be minus infinity.
        """
        return 10.0 * torch.log10((power @ self.melW.to(power.dtype)).clamp(min=1e-10))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        normalise_in_place(self)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` (B, C, T, M)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class PannCNN(nn.Module):
    """Log-mel front end and convolution blocks; defaults are Cnn14 as in the original.

    Args:
        channels: Output channels per block. Every block but the last halves time and mel.
        sample_rate: Of the waveform, in Hz.
        n_fft, hop: Window and hop of the spectrogram, in samples.
        mel_bins, fmin, fmax: Mel filter bank, in bins and Hz.
        spec_augment: Stripes of up to `time_stripe` frames and `mel_stripe` bins dropped twice while training.
        dropout: After every block but the last, while training.
        stored_fourier: Keep the Fourier basis as weights, as released files do; otherwise `torch.stft` computes.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512, 1024, 2048),
        sample_rate: int = 48000,
        n_fft: int = 1024,
        hop: int = 200,
        mel_bins: int = 64,
        fmin: float = 50.0,
        fmax: float = 14000.0,
        time_stripe: int = 64,
        mel_stripe: int = 8,
        dropout: float = 0.2,
        stored_fourier: bool = False,
    ) -> None:
        super().__init__()
        self.n_fft, self.hop, self.dropout = n_fft, hop, dropout
        if stored_fourier:
            self.spectrogram_extractor = StoredFourier(n_fft)
        self.stripes = (time_stripe, mel_stripe)
        self.logmel_extractor = LogMel(sample_rate, n_fft, mel_bins, fmin, fmax)
        self.bn0 = nn.BatchNorm2d(mel_bins)
        previous = 1
        for index, width in enumerate(channels):
            self.add_module(f"conv_block{index + 1}", ConvBlock(previous, width))
            previous = width
        self.num_blocks = len(channels)
        self.out_channels = previous
        # Reflection needs more than half a window, and every pooling two frames.
        self.min_samples = max(n_fft // 2 + 1, hop * (2 ** (self.num_blocks - 1) - 1))

    def spectrogram(self, waveform: Tensor) -> Tensor:
        """Return the power spectrogram (B, T, n_fft / 2 + 1) of `waveform` (B, samples), always in float32.

        A waveform that is too short for one feature is extended by silence.
        """
        waveform = F.pad(waveform.float(), (0, max(self.min_samples - waveform.shape[1], 0)))
        if hasattr(self, "spectrogram_extractor"):
            return self.spectrogram_extractor(waveform, self.hop)
        window = torch.hann_window(self.n_fft, device=waveform.device)  # not kept: an export would leave a fake one
        spectrum = torch.stft(
            waveform,
            self.n_fft,
            self.hop,
            window=window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return spectrum.abs().square().transpose(1, 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map a waveform (B, samples) in [-1, 1] to features (B, C, T', M')."""
        with torch.autocast("cuda" if waveform.is_cuda else "cpu", enabled=False):
            x = self.logmel_extractor(self.spectrogram(waveform))[:, None]  # B 1 T M
        x = self.bn0(x.to(self.bn0.weight.dtype).transpose(1, 3)).transpose(1, 3)
        if self.training:
            x = drop_stripes(x, *self.stripes)
        for index in range(self.num_blocks):
            x = self.get_submodule(f"conv_block{index + 1}")(x)
            if index < self.num_blocks - 1:
                x = F.dropout(F.avg_pool2d(x, 2), self.dropout, self.training)
        return x


def drop_stripes(x: Tensor, time_stripe: int, mel_stripe: int) -> Tensor:
    """Zero two random time stripes and two random mel stripes per sample (SpecAugment, Park et al. 2019)."""
    keep = torch.ones_like(x)
    for axis, limit in ((2, time_stripe), (3, mel_stripe)):
        size = x.shape[axis]
        position = torch.arange(size, device=x.device)
        for _ in range(2):
            width = torch.randint(0, min(limit, size) + 1, (len(x), 1), device=x.device)
            start = (torch.rand(len(x), 1, device=x.device) * (size - width)).long()
            dropped = (position >= start) & (position < start + width)  # B size
            keep = keep.masked_fill(dropped[:, None, :, None] if axis == 2 else dropped[:, None, None, :], 0.0)
    return x * keep
