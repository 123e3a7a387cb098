"""What an image codec is, and how one is opened from local files.

A codec turns a picture into a grid of integers, one per square of `patch` pixels, and back. The model writes these as
`<code_i>`, row by row (specification 4.6).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from unival.atomic import replacing
from unival.data.image import load_image
from unival.errors import UserError


class ImageCodec(Protocol):
    """Pictures to codes and back. Shapes: B pictures, H x W pixels, h x w codes with h = H / patch.

    What is given may be on any device; what is returned is where the codec is.
    """

    patch: int
    num_codes: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes (B, h, w) int64 of pixels (B, 3, H, W) in [-1, 1]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1] of codes (B, h, w)."""
        ...


def load_codec(path: str | Path, device: torch.device | str = "cpu") -> ImageCodec:
    """Open a codec on a device: our folder with `codec.json`, or a checkpoint of taming-transformers.

    Raises:
        UserError: If it is missing, unreadable or no VQGAN.
    """
    from unival.codec.vqgan import CodecConfig, build_codec, inferred_config
    from unival.weights import read_weights

    path = Path(path)
    state = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith("loss.")}
    config = inferred_config(state, str(path))
    described = path / "codec.json" if path.is_dir() else path.with_name("codec.json")
    if described.is_file():
        try:
            config = TypeAdapter(CodecConfig).validate_json(described.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = "".join(f"{part}: " for part in first["loc"])
            what = f"not the description of a codec: {key}{first['msg']}"
            raise UserError(what, where=str(described), fix="copy the codec's folder again") from None
    return build_codec(config, state, str(path)).to(device)


def to_pixels(picture: Any, side: int) -> Tensor:
    """Return a picture (path, bytes, PIL image, uint8 array) as (3, side, side) in [-1, 1], squashed to the side."""
    image = load_image(picture)
    if image.size != (side, side):
        image = image.resize((side, side), resample=3)  # bicubic
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1.0)


def to_picture(pixels: Tensor) -> np.ndarray:
    """Return pixels (3, H, W) in [-1, 1] as a uint8 array (H, W, 3)."""
    scaled = pixels.detach().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return scaled.permute(1, 2, 0).to("cpu", torch.uint8).numpy()


def to_grid(codes: Sequence[int], num_codes: int) -> Tensor:
    """Return a list of codes, row by row, as a square grid (1, h, h).

    Raises:
        UserError: If they fill no square, or one is no code of the codec.
    """
    side = int(len(codes) ** 0.5)
    if side == 0 or side * side != len(codes):
        fix = "a model writes as many as its code_image_size asks for"
        raise UserError(f"{len(codes)} codes fill no square", fix=fix)
    worst = max(codes, key=lambda code: abs(code - num_codes / 2))
    if not 0 <= worst < num_codes:
        fix = "give the codec that the model was trained with"
        raise UserError(f"code {worst} is none of the codec's {num_codes}", fix=fix)
    return torch.tensor(codes).view(1, side, side)


def write_picture(folder: Path, number: int, name: str, picture: np.ndarray) -> Path:
    """Write a picture as PNG under its number and name and return the path."""
    path = folder / f"{number:06d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:80]}.png"
    with replacing(path, "wb") as file:
        Image.fromarray(picture).save(file, "PNG")
    return path
