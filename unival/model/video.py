"""Video encoder: 3D ResNeXt (Hara et al. 2018; specification 2.7). Time is halved with space from the pooling on."""

from collections.abc import Sequence

from torch import Tensor, nn

from unival.model.norm import freeze_batch_norm, normalise_in_place


class ResNeXtBlock(nn.Module):
    """Bottleneck with a grouped 3x3x3 convolution; the output has `2 * planes` channels."""

    def __init__(self, in_channels: int, planes: int, groups: int, stride: int) -> None:
        super().__init__()
        out_channels = 2 * planes
        self.conv1 = nn.Conv3d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Transform `x` (B, C, F, H, W)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNeXt3D(nn.Module):
    """3D ResNeXt whose defaults are the original's `all_resnext101`; every size is an argument.

    Args:
        depths: Blocks per stage; the first stage keeps the resolution, each later one halves time and space.
        planes: Bottleneck width per stage; a stage has `2 * planes` output channels.
        groups: Groups of the 3x3x3 convolutions.
        stem_width: Channels of the first convolution.
        stem_kernel: Kernel of the first convolution over (time, height, width).
        frozen_norm: Fix batch norm for ever.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 23, 3),
        planes: Sequence[int] = (128, 256, 512, 1024),
        groups: int = 32,
        stem_width: int = 64,
        stem_kernel: Sequence[int] = (7, 7, 7),
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        time, height, width = stem_kernel
        kernel, padding = (time, height, width), (time // 2, height // 2, width // 2)
        self.conv1 = nn.Conv3d(3, stem_width, kernel, stride=(1, 2, 2), padding=padding, bias=False)
        self.bn1 = nn.BatchNorm3d(stem_width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        channels, stages = stem_width, []
        for index, (depth, width) in enumerate(zip(depths, planes, strict=True)):
            blocks = []
            for block in range(depth):
                blocks.append(ResNeXtBlock(channels, width, groups, 2 if index > 0 and block == 0 else 1))
                channels = 2 * width
            stages.append(nn.Sequential(*blocks))
        self.num_stages = len(stages)
        for index, stage in enumerate(stages):
            self.add_module(f"layer{index + 1}", stage)
        self.out_channels = channels
        if frozen_norm:
            freeze_batch_norm(self)
        normalise_in_place(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, F, H, W) to (B, C, F', H', W')."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.num_stages):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return x
