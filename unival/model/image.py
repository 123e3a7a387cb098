"""Image encoder: any timm backbone, read at one feature level (the original: ResNet-101, specification 2.6)."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from unival.errors import UserError
from unival.model.convolution import convolve_faster
from unival.model.linear import is_watched
from unival.model.norm import freeze_batch_norm, normalise_in_place

# Pixels that a CPU reads at a time in prediction. The largest tensors inside of a ResNet are 5.3 times as large, and
# for each of more than 32 MB the C library of Linux takes new memory, which costs more than to compute what goes into
# it; smaller parts transform the kernels of `unival.model.convolution` more often.
PART_BYTES = 12 * 2**20


def build_image_encoder(options: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Return a module that maps (B, 3, H, W) to (B, C, H / stride, W / stride), and C.

    The parameters have the names of the timm model itself, which for ResNets are those of the released files.

    Args:
        options: `name` of a timm model, `out_index` of the feature level, further arguments for `timm.create_model`,
            and two of our own: `frozen_norm` fixes batch norm for ever; `classifier` keeps that many rows of an unused,
            untrained classifier `fc`, because released files store one and must come out as they went in.

    Raises:
        UserError: If timm does not know the name or the arguments; the message lists close names.
    """
    arguments = dict(options)
    name, out_index = str(arguments.pop("name", None)), arguments.pop("out_index", -1)
    frozen_norm, classifier = arguments.pop("frozen_norm", False), arguments.pop("classifier", 0)
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5)
        raise UserError(f"image_encoder.name {name!r} is not a timm model", fix=f"close: {', '.join(close) or 'none'}")
    if classifier and out_index != -1:
        raise UserError("image_encoder: a classifier is only kept behind the last level", fix="leave out out_index")
    kind = {"num_classes": classifier} if classifier else {"features_only": True, "out_indices": [out_index]}
    try:
        # Its models have methods that the annotated nn.Module has not.
        backbone = cast(Any, timm.create_model(name, pretrained=False, **kind, **arguments))
    except (TypeError, AssertionError, IndexError) as error:  # what timm raises for its arguments
        raise UserError(f"image_encoder {name!r} does not take these options: {error}", where=str(arguments)) from None
    convolve_faster(backbone)
    if frozen_norm:
        freeze_batch_norm(backbone)
    if timm.models.is_model_in_modules(name, ["resnet"]):  # there every norm follows a convolution
        normalise_in_place(backbone)
    if not classifier:
        return backbone, backbone.feature_info.channels()[-1]
    backbone.get_classifier().requires_grad_(False)
    return backbone, backbone.num_features


def image_features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """Run `backbone` on `pixels` (B, 3, H, W) in channels-last layout, which convolutions prefer on CPUs and GPUs."""
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if is_watched() or backbone.training or pixels.device.type != "cpu":
        return _features(backbone, pixels)
    rows = max(PART_BYTES // max(pixels[:1].nbytes, 1), 1)
    if len(pixels) <= rows:
        return _features(backbone, pixels)
    return torch.cat([_features(backbone, part) for part in pixels.split(rows)])


def _features(backbone: nn.Module, pixels: Tensor) -> Tensor:
    forward_features = getattr(backbone, "forward_features", None)
    if forward_features is not None:  # a whole timm model, with its classifier
        return forward_features(pixels)
    features = backbone(pixels)[-1]
    info = getattr(backbone, "feature_info", None)
    if info is not None and features.shape[1] != info.channels()[-1] == features.shape[-1]:
        return features.permute(0, 3, 1, 2)  # Swin and its kind have channels last
    return features
