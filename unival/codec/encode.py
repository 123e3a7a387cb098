"""Write pictures as codes: the data of text-to-image."""

import json
from pathlib import Path
from typing import Any

import torch

from unival.atomic import replacing
from unival.codec.base import load_codec, to_pixels
from unival.config import load_config
from unival.data.source import Source, open_source
from unival.device import find_device
from unival.errors import UserError
from unival.log import track
from unival.schema import SourceConfig
from unival.sections import Section

BATCH_SIZE = 16


def encode_pictures(source: str, out: str | Path, codec: str | Path, side: int, device: str = "auto") -> dict[str, Any]:
    """Write a manifest with the text fields of rows and the codes of their pictures.

    Args:
        source: A manifest, or a mapping in YAML, as a configuration has it under `source`. Of rows about one picture,
            which tasks of the embedded world have, the first is taken.
        out: The manifest to write.
        codec: VQGAN checkpoint, or a folder of `train_codec`.
        side: Pixels that pictures are squashed to.
        device: Where to compute; `auto` is a GPU when there is one.

    Raises:
        UserError: If the source or the codec is missing or malformed, or a row has no picture.
    """
    out = Path(out)
    if out.resolve() == Path(source).resolve():
        raise UserError("the codes would replace the manifest of the pictures", str(out), "give another file to write")
    network, rows = load_codec(codec, find_device(device)), open_pictures(source)
    indices = range(0, len(rows), rows.variants)
    with replacing(out) as file:
        for start in track(range(0, len(indices), BATCH_SIZE), "encode", -(-len(indices) // BATCH_SIZE)):
            part = [rows[index] for index in indices[start : start + BATCH_SIZE]]
            without = next((row["uid"] for row in part if "image" not in row), None)
            if without is not None:
                raise UserError("a row has no picture", where=f"{source}: {without}", fix="give it `image`")
            grids = network.encode(torch.stack([to_pixels(row["image"], side) for row in part]))
            for row, grid in zip(part, grids, strict=True):
                texts = {name: value for name, value in row.items() if name not in {"image", "media_id", "codes"}}
                file.write(json.dumps(texts | {"codes": grid.flatten().tolist()}, ensure_ascii=False) + "\n")
    return {"rows": len(indices), "codes": (side // network.patch) ** 2, "written": str(out)}


class _Asked(Section):
    source: SourceConfig


def open_pictures(source: str) -> Source:
    """Open a manifest, or what a configuration says under `source`."""
    if source.startswith("{"):
        return open_source(load_config(None, [f"source={source}"], _Asked).source, "caption", "image")
    return open_source(SourceConfig(manifest=source), "caption", "image")
