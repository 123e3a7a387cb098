"""Image encoder: any timm backbone, read at one feature level (the original: ResNet-101, specification 2.6)."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn

from unival.errors import UserError


def build_image_encoder(options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Return a module that maps (B, 3, H, W) to (B, C, H / stride, W / stride), and C.

    Args:
        options: `name` of a timm model, `out_index` of the feature level, further arguments for `timm.create_model`.

    Raises:
        UserError: If timm does not know the name or the arguments; the message lists close names.
    """
    arguments = dict(options)
    name, out_index = str(arguments.pop("name", None)), arguments.pop("out_index", -1)
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise UserError(f"image_encoder.name {name!r} is not a timm model", fix=f"close: {', '.join(close) or 'none'}")
    try:
        backbone = timm.create_model(name, features_only=True, out_indices=[out_index], pretrained=False, **arguments)
    except (TypeError, AssertionError, IndexError) as error:  # what timm raises for its arguments
        raise UserError(f"image_encoder {name!r} does not take these options: {error}", where=str(arguments)) from None
    return backbone, backbone.feature_info.channels()[-1]


def image_features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """Run `backbone` on `pixels` (B, 3, H, W) in channels-last layout, which convolutions prefer on CPUs and GPUs."""
    return backbone(pixels.contiguous(memory_format=torch.channels_last))[-1]
